"""Two TLS ends in memory, for tests of contexts and outcomes."""

from OpenSSL import SSL


def connected(client: SSL.Context, server: SSL.Context) -> tuple[SSL.Connection, SSL.Connection]:
    """A client and a server that have not said anything yet."""
    ends = (SSL.Connection(client, None), SSL.Connection(server, None))
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    return ends


def carry(sender: SSL.Connection, receiver: SSL.Connection) -> bool:
    """Moves what `sender` has written; was there anything?"""
    moved = False
    while True:
        try:
            receiver.bio_write(sender.bio_read(65536))
        except SSL.WantReadError:
            return moved
        moved = True


def shake_hands(client: SSL.Connection, server: SSL.Connection) -> None:
    """A whole handshake; raises what the first end that fails raises, the client's error before the
    server's."""
    for _ in range(10):
        done = True
        failed: list[SSL.Error] = []
        for end, other in ((client, server), (server, client)):
            try:
                end.do_handshake()
            except SSL.WantReadError:
                done = False
            except SSL.Error as error:
                failed.append(error)
            carry(end, other)
        if failed:
            raise failed[0]
        if done:
            return
    raise AssertionError("the handshake does not end")
