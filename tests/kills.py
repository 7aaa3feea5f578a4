"""How often tests kill the processes that they start: LTX_KILLS=30 makes them do it more often."""

import os


def number_of_kills(usual: int) -> int:
    return int(os.environ.get("LTX_KILLS", usual))
