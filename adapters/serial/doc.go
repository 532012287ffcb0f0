// Package serial talks with a device on a serial line: it cuts the bytes into
// frames, checks whether each is whole, finds the fields in it, and publishes
// them as readings. It sends only what the configuration says, polls and
// commands, and keeps no values. The only goroutine is the one that calls
// [Adapter.Run]. It has no errors that callers test for.
//
// Framing has a bound: how much of what follows noise may be lost until the
// framer is in step again. Silence of the frame timeout puts every framing in
// step at once.
//
//   - delimiter, slip, cobs, sml, iec62056, start_end: the one frame that touches the noise,
//     since no mark stands inside of a frame. With a start and an end without
//     escapes, data that looks like a start costs the frame it is in.
//   - fixed, length, with a checksum: none. What does not fit is given up byte by
//     byte, and looked at again. A checksum of n bits passes noise for a frame
//     once in 2^n bytes of it.
//   - fixed and length with a sync word alone: as many bytes as the frame has that
//     the noise seems to begin, at most max_length, provided that the sync word
//     does not stand inside of frames.
//   - regexp: the one frame that touches the noise, if the pattern cannot match
//     from within one frame into another; without a match no more than max_length
//     bytes are kept.
//   - silence: what comes up to the next silence.
package serial
