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
        ('<blockquote class="spoiler"><p>butler</p></blockquote>', ">! butler"),
        (
            '<blockquote class="spoiler">\n<p>who?</p>\n<p>the butler</p></blockquote>',
            ">! who?\n>\n> the butler",
        ),
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
            "5 < 6 & **bold** *it* x<sup>2</sup>",
        ),
        ("<p>H<sub>2</sub>O, about ~5</p>", "H<sub>2</sub>O, about ~5"),
        (
            "<blockquote><ul><li>a</li><li>b</li></ul><p>after</p></blockquote><p>out</p>",
            "> - a\n> - b\n>\n> after\n\nout",
        ),
        (
            "<blockquote><blockquote><p>a</p></blockquote><blockquote><p>b</p></blockquote>"
            "</blockquote><ul><li>c</li></ul><p>d</p>",
            "> > a\n>\n> > b\n\n- c\n\nd",
        ),
        (
            '<h2>Look <img src="http://i/j.png" alt="pic"></h2><p>here</p>',
            "## Look ![pic](http://i/j.png)\n\nhere",
        ),
        ("<p><s><code>x</code></s>, <s>see <code>y</code></s></p>", "~~`x`~~, ~~see `y`~~"),
        ("", ""),
    ],
)
def test_the_content_of_a_post_survives(html: str, markdown: str) -> None:
    assert from_html(html) == markdown


@pytest.mark.parametrize("tags", [("div",), ("blockquote",), ("ul", "li"), ("b",)])
@pytest.mark.parametrize("depth", [399, 512, 100_000])
def test_deeply_nested_html_keeps_its_text(tags: tuple[str, ...], depth: int) -> None:
    opening = "".join(f"<{tag}>" for tag in tags) * depth
    closing = "".join(f"</{tag}>" for tag in tags[::-1]) * depth
    text = from_html(f"<p>before</p>{opening}in &lt;it&gt;{closing}<p>after</p>")
    assert all(word in text for word in ("before", "in", "after"))
    assert len(text) < 5000


def test_many_unclosed_paragraphs_are_not_nested() -> None:
    assert from_html("a" + "<p>b" * 1000).count("\n\nb") == 1000
