#!lua name=btc
-- The queue: every change of state, each in one call (docs/protocol.md).
