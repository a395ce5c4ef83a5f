"""Authors that are bots."""

from functools import cache

NAMES = """
automoderator remindmebot visualmod communitymodbot autotldr sneakpeekbot totesmessenger
wikitextbot wikisummarizerbot wikipedia_answer_bot wikipedia_text_bot wikimobilelinkbot
haikusbot haikubot-1911 sokkahaikubot amputatorbot nogoogleampbot repostsleuthbot
goodbot_badbot good_human_bot_v2 genderneutralbot converter-bot commonmisspellingbot
fatfingerhelperbot b0trank savevideo savevideobot vredditdownloader vredditshare
stabbot gifreversingbot imguralbumbot linkifybot alphabet_order_bot paid-not-payed-bot
luckynumber-bot anti-gif-bot transcribot transcribersofreddit metric_units convertstometric
timezone_bot mentioned_videos videolinkbot tweetposter tweetlinkerbot snapshillbot
riskyclickerbot nwordcountbot profanitycounter auddbot same_post_bot same_subreddit_bot
resavr_bot spambotswatter smallsubbot rosey-the-bot deltabot could-of-bot helperbot
helperbot_ dadbot_2 dadbot_3000 i-am-dad-bot auto-xkcd37 xkcd_transcriber
"""
"""Accounts of Reddit in lower case that answer by machine, as published filters list them. Source:
https://github.com/Watchful1/PushshiftDumps, `scripts/ignored.txt`."""


def is_bot(author: str | None, more: tuple[str, ...] = ()) -> bool:
    """Whether an author is a well-known bot or one of the names; case does not count."""
    return author is not None and author.lower() in _names(more)


@cache
def _names(more: tuple[str, ...]) -> frozenset[str]:
    return frozenset(NAMES.split()) | {name.lower() for name in more}
