"""HTML to Markdown."""

import pytest

from worldpm.forums.markdown import from_html


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        (
            '<pre class="lang-py prettyprint-override"><code>a &lt; b\n</code></pre>',
            "```py\na < b\n```",
        ),
        ('<pre class="lang-none"><code>x\n</code></pre>', "```\nx\n```"),
        ("<p>Use <code>language-none</code></p>", "Use `language-none`"),
        ('<pre><code>class="lang-none"\n</code></pre>', '```\nclass="lang-none"\n```'),
        ("<pre><code>a ``` b\n</code></pre>", "````\na ``` b\n````"),
        ("<ul><li>one<ul><li>two</li></ul></li></ul>", "- one\n  - two"),
        ('<ol start="3"><li>x</li><li>y</li></ol>', "3. x\n4. y"),
        ("<blockquote><p>a</p></blockquote>\n<blockquote><p>b</p></blockquote>", "> a\n\n> b"),
        ('<blockquote class="spoiler"><p>butler</p></blockquote>', "> ! butler"),
        (
            '<a href="http://x.y/z">link</a> and <img src="http://i/j.png" alt="pic">',
            "[link](http://x.y/z) and ![pic](http://i/j.png)",
        ),
        (
            "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1|2</td><td>3</td></tr></tbody></table>",
            "| a    | b |\n| ---- | --- |\n| 1\\|2 | 3 |",
        ),
        (
            "<p>$a_1 * b_2$ and $$x \\\\ y$$ and \\begin{align} a &amp;= b\\\\ c \\end{align}</p>",
            "$a_1 * b_2$ and $$x \\\\ y$$ and \\begin{align} a &= b\\\\ c \\end{align}",
        ),
        (
            "<p>5 &lt; 6 &amp; <strong>bold</strong> <em>it</em> x<sup>2</sup></p>",
            "5 < 6 & **bold** *it* x^2^",
        ),
        ("", ""),
    ],
)
def test_the_content_of_a_post_survives(html: str, markdown: str) -> None:
    assert from_html(html) == markdown
