"""HTTP on one socket: parse heads, admit requests, receive bodies, send answers."""
