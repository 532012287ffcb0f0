// Package profile knows the register maps of common devices: what a device has,
// where, of which type and unit, and how it is recognised. A [Profile] is a data
// file; those in maps are part of the program, others are the user's own. The
// files are decoded by whoever reads the configuration, with the same strictness.
//
// What is not certain is not in a map: each register stands in two independent
// public sources at least, which the file names.
//
// Devices that describe themselves by SunSpec models have no map but are asked:
// [SunSpec] walks their models and plans points from them.
//
// It opens nothing, starts no goroutines and sends nothing: the bus does.
package profile
