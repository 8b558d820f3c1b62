"""Limit the number of admitted requests over all connections.

This is for overload, with more requests than the event loop can even read. A refusal by the application costs nearly as
much as an answer. A refusal after the head alone costs little, so the time goes to the requests that are admitted.
"""


class AdmissionLimit:
    """Counts admitted requests over all connections: those whose body has arrived and whose answer has not begun.

    Clients that send slowly or read slowly do not count, because a few of them could block all others.

    Args:
        max_inside: most admitted requests; others get a 429.
    """

    def __init__(self, max_inside: int) -> None:
        self.max_inside = max_inside
        self.inside = 0
