"""Measures a user's own line and server, by real transfers, and says what bounds them.

``measure`` runs all ``steps`` and gives ``facts.Measurements``; ``verdict`` decides what they mean, purely; ``wording``
and ``report`` say it to people and to programs. ``plan`` decides how much to send, ``line_facts`` asks the kernel about
connections, ``watch`` looks at one transfer, ``scratch`` is what lies on this side meanwhile; ``remote_scratch``, one
floor up, what lies on the other.

    from twinport.bench.measure import measure

    found = measure(lambda channels, policy: Client(address, channels=channels, policy=policy))
"""
