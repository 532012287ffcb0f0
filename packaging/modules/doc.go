// Command modules writes down what is inside the binary, in the forms that
// packagers and reviewers need:
//
//   - the Go modules that the Yocto recipe fetches, with their checksums, so
//     that its do_compile needs no network,
//   - their licences with checksums, for the same recipe,
//   - the licence texts, for the copyright file of the Debian package,
//   - the packages it is built of, so that a change that brings more shows it.
//
// All come from go.mod, go.sum and the module cache; a test fails when
// one of them is out of step. Run `make modules` after a change of go.mod or
// of what is imported.
package main
