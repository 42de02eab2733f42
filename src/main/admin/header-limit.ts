/**
 * How many bytes the headers of a request may have. uWebSockets.js answers more by itself, without our envelope, and takes
 * its limit (4,096 when nothing is said) from the environment at the moment its native module is loaded: this file is
 * imported before it.
 */
process.env['UWS_HTTP_MAX_HEADERS_SIZE'] ??= '16384'
