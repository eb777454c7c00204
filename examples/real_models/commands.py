"""693 commands to a voice assistant (SNIPS), each of one of seven intents.

For demonstrations (see `bigbench`).
"""

from . import bigbench

INTENTS = (
    *("add_to_playlist", "book_restaurant", "get_weather", "play_music"),
    *("rate_book", "search_creative_work", "search_screening_event"),
)


def load() -> list[tuple[str, str]]:
    """Pairs of a command and its intent."""
    return [
        (text.removeprefix("Utterance: "), intent)
        for text, intent in bigbench.examples(bigbench.INTENTS)
    ]
