//go:build !slicelabels

package appliance

// Thanos's libraries cast their labels to Prometheus's, which is only valid with this representation; without the tag
// everything compiles and crashes at the first answer of a peer. So it shall not compile.
var _ int = "build tocsin with -tags slicelabels, as the Makefile does"
