// Package install holds what the Debian package promises on machines that have nothing but a base system.
//
// It owns nothing of the product and imports nothing of it: a machine is a fresh Debian root in an overlay, started by
// systemd-nspawn with a real systemd in a network namespace of its own. What enters is the package (environment
// variable TOCSIN_DEB, which `make install-test` sets). Where machines cannot be had, which takes root and the
// programs of `make test-deps`, the tests are skipped with the reason, and fail if CI=true.
//
// The Debian root is made once a week with mmdebstrap, which takes a minute, and kept in ~/.cache/tocsin-e2e. Nothing
// else comes from outside: on a machine, apt knows only the repository that the test makes.
package install
