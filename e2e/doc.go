// Package e2e holds the promises of the issue against the real binary.
//
// It owns nothing of the product and imports nothing of it: it speaks HTTP, files, signals and processes only. What
// enters is the path of the binary (environment variable TOCSIN) and Debian's Prometheus, Alertmanager tools,
// node_exporter and aiosmtpd (`make test-deps`). What leaves is a verdict; where it is a bad one, the logs and data
// directories are kept and named. Everything listens on the loopback address at ports that the kernel picks. It
// refuses to sleep: whatever takes time is polled with a deadline.
package e2e
