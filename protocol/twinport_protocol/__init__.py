"""The wire of Twinport, for both ends: bytes in, events out; no socket, no clock, no file.

    errors     every way to say no, the list of codes, whose fault it was
    numbers    sizes and times: one spelling each
    names      remote names: the one door for paths from the wire; words of a line
    lines      bounded lines out of a byte stream
    classic    the classic dialect: commands, replies, the state of a session
    messages   the lines of twinport/2 as values: commands, replies, greetings
    control    both ends of a twinport/2 control connection, its limits and window
    frames     the frames of a channel: header, payload, decoder
    channel    both ends of a channel: attachments, credit, which answer belongs to what
    segments   how a file is cut; digests, manifest and root
    tickets    signed proof, for a channel, of what control allowed
    upload     the upload state machine
    sniff      what a new connection is, told from its first bytes

``docs/protocol.md`` says the same for those who write another client. Nothing is re-exported here: import the module.
"""
