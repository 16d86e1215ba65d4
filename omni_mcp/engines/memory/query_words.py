"""Which words of a question say nothing about what is asked for, and which words times are told with."""

from __future__ import annotations

STOP_WORDS = frozenset(
    """
    a an the this that these those there here
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves
    am is are was were be been being have has had having do does did doing done will would shall should can could may
    might must ought
    and or but nor so if then than because while as of at by for with about against between into through during before
    after above below to from up down in out on off over under again further once
    what which who whom whose when where why how
    all any both each few more most other some such no not only own same too very just
    s t d ll re ve m don doesn didn isn aren wasn weren hasn haven hadn won wouldn shouldn couldn can
    """.split()  # noqa: SIM905  one word a line would be four pages
)

TIME_WORDS = (
    "yesterday today tomorrow tonight ago recently soon last next week weekend month year "
    "monday tuesday wednesday thursday friday saturday sunday january february march april may june july august "
    "september october november december morning evening night spring summer autumn winter o'clock"
)
