"""Who gets in, and how far: TLS, bearer tokens with their models and limits, calls for administrators alone.

watched     files that are read again when they change
tls         certificates and keys
tokens      the file of tokens
limiter     how often, and how many at a time
access      the interceptors that ask all of them
wire        how many fields a message has
exposure    what an address without them leaves open
"""
