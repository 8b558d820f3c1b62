"""HTTP over one socket: heads, admission, bodies that come in, answers that leave."""
