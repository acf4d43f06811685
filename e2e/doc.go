// Package e2e holds the promises of the issue against the real binary.
//
// It owns nothing of the product and imports nothing of it: it speaks HTTP, files, signals and processes only. What
// enters is the path of the binary (environment variable TOCSIN) and Debian's Prometheus, Alertmanager, amtool,
// node_exporter, aiosmtpd and Chromium (`make test-deps`); the latter is driven by scripts in web/ui/e2e, which Node.js
// runs. What leaves is a verdict; where it is a bad one, the logs and data directories are kept and named. Everything
// listens on loopback addresses, or in network namespaces that nobody else sees: zones, between which the tests cut,
// delay and lose packets. Where namespaces or a browser cannot be had, those tests are skipped with the reason, and fail
// if CI=true. It refuses to sleep: whatever takes time is polled with a deadline, or has its place on a timeline.
package e2e
