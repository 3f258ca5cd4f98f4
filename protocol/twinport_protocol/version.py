"""The version of Twinport, here alone: the package takes it from this file. Reading it from the installed metadata
would cost each start some 30 ms."""

VERSION = "0.1.0"
