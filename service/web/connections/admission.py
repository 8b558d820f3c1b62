"""How many requests are inside, over all connections.

For more requests than the event loop can even read. A refusal by the application costs a good part of what an answer
does; by the head alone, little. So under any load the time goes to those that are let in.
"""


class AdmissionLimit:
    """How many requests are inside, over all connections: their body is there, and their answer has not begun.

    Neither clients that send slowly nor clients that read slowly take room, or a few could shut all others out.

    Args:
        max_inside: requests that are let in; further ones get a 429.
    """

    def __init__(self, max_inside: int) -> None:
        self.max_inside = max_inside
        self.inside = 0
