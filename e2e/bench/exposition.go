package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
)

const (
	minSeries = 200
	maxSeries = 5_000
)

// exposition is what the targets of one job say, for each of the steps, compressed.
type exposition struct {
	bodies [][]byte
}

// line is one series: its text up to the value, and how the value moves.
type line struct {
	family, kind string
	prefix       string
	value        float64
	// busy is the chance that a counter moves between two scrapes; most series of real programs stand still.
	busy float64
	// rise is the mean rise of a counter; 0 means a gauge that wanders.
	rise     float64
	fraction bool // seconds rather than a count
	// buckets is how many lines that follow are the buckets, the sum and the count of this histogram; they move together.
	buckets int
}

// newExposition renders the bodies of job number n with so many series.
func newExposition(n, series int) (*exposition, error) {
	rnd := rand.New(rand.NewPCG(uint64(n), 2026))
	lines := program(n, series, rnd)
	e := &exposition{bodies: make([][]byte, steps)}
	var text []byte
	for step := range steps {
		text = text[:0]
		for i := 0; i < len(lines); {
			if h := lines[i].buckets; h > 0 {
				observe(lines[i:i+h], rnd)
				for _, l := range lines[i : i+h] {
					text = l.append(text)
				}
				i += h
				continue
			}
			lines[i].move(rnd)
			text = lines[i].append(text)
			i++
		}
		var z bytes.Buffer
		if err := compress(gzip.NewWriter(&z), text); err != nil {
			return nil, err
		}
		e.bodies[step] = z.Bytes()
	}
	return e, nil
}

// program invents the series of a program: request histograms, counters by code, CPU times, runtime gauges, and a rest
// of queue gauges up to the number asked for. Some metric names are the job's own, most are shared, as in real life.
func program(n, series int, rnd *rand.Rand) []line {
	var lines []line
	room := func(k int) bool { return len(lines)+k <= series }
	for h := 0; h < 24 && room(14); h++ {
		labels := fmt.Sprintf(`code="200",handler="/api/v1/%s",method=%q`, noun(n+h/2), [...]string{"GET", "POST"}[h%2])
		lines = append(lines, histogram("http_request_duration_seconds", labels, rnd.Float64())...)
	}
	codes := [...]string{"200", "204", "302", "404", "500"}
	for c := 0; c < 120 && room(1); c++ {
		labels := fmt.Sprintf(`code=%q,handler="/api/v1/%s",method=%q,version="v%d.%d"`, codes[c%5], noun(n+c/10), [...]string{"GET", "POST"}[c/5%2], 1+n%3, n%7)
		busy := 0.9
		if c%5 > 2 {
			busy = 0.1
		}
		lines = append(lines, counter("http_requests_total", labels, busy, 40*rnd.Float64()))
	}
	for c := 0; c < 64 && room(1); c++ {
		mode := [...]string{"idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"}[c%8]
		l := counter("node_cpu_seconds_total", fmt.Sprintf(`cpu="%d",mode=%q`, c/8, mode), 0.8, 3)
		l.fraction = true
		lines = append(lines, l)
	}
	for c := 0; c < 80 && room(1); c++ {
		labels := fmt.Sprintf(`grpc_code=%q,grpc_method="%s",grpc_service="acme.%s.v1",grpc_type="unary"`,
			[...]string{"OK", "Canceled", "DeadlineExceeded", "Internal", "NotFound", "PermissionDenied", "Unavailable", "Unknown"}[c%8], noun(c/8), noun(n))
		busy := 0.05
		if c%8 == 0 {
			busy = 0.9
		}
		lines = append(lines, counter(fmt.Sprintf("app%02d_grpc_server_handled_total", n), labels, busy, 12))
	}
	for c := 0; c < 40 && room(1); c++ {
		lines = append(lines, gauge(fmt.Sprintf("go_runtime_stat_%02d_bytes", c), `kind="heap",unit="bytes",version="go1.26"`, float64(1<<20)*rnd.Float64(), 0.7))
	}
	for c := 0; room(1); c++ {
		labels := fmt.Sprintf(`priority="%d",queue="%s-%d",shard="%02d",state=%q`, c%3, noun(n+c), c/60, c%16, [...]string{"ready", "running", "failed", "delayed"}[c/3%4])
		lines = append(lines, gauge(fmt.Sprintf("app%02d_queue_messages", n), labels, float64(rnd.IntN(5000)), 0.4))
	}
	return withHeads(lines)
}

func histogram(name, labels string, busy float64) []line {
	bounds := [...]string{"0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"}
	lines := make([]line, 0, len(bounds)+2)
	for _, le := range bounds {
		lines = append(lines, line{family: name, kind: "histogram", prefix: fmt.Sprintf("%s_bucket{%s,le=%q} ", name, labels, le)})
	}
	lines = append(lines,
		line{family: name, kind: "histogram", prefix: fmt.Sprintf("%s_sum{%s} ", name, labels), fraction: true},
		line{family: name, kind: "histogram", prefix: fmt.Sprintf("%s_count{%s} ", name, labels)})
	lines[0].buckets, lines[0].busy, lines[0].rise = len(lines), busy, 30
	return lines
}

func counter(name, labels string, busy, rise float64) line {
	return line{family: name, kind: "counter", prefix: name + "{" + labels + "} ", busy: busy, rise: rise + 1}
}

func gauge(name, labels string, start, busy float64) line {
	return line{family: name, kind: "gauge", prefix: name + "{" + labels + "} ", value: math.Floor(start), busy: busy}
}

// withHeads puts HELP and TYPE before the first series of each metric, as every client library does.
func withHeads(lines []line) []line {
	family := ""
	for i, l := range lines {
		if l.family != family {
			lines[i].prefix = fmt.Sprintf("# HELP %s Invented for a benchmark.\n# TYPE %s %s\n%s", l.family, l.family, l.kind, l.prefix)
			family = l.family
		}
	}
	return lines
}

// move takes a counter or a gauge one scrape further.
func (l *line) move(rnd *rand.Rand) {
	if rnd.Float64() >= l.busy {
		return
	}
	switch {
	case l.rise > 0 && l.fraction:
		l.value += l.rise * rnd.Float64()
	case l.rise > 0:
		l.value += float64(1 + rnd.IntN(int(2*l.rise)))
	default:
		l.value = max(0, l.value+float64(rnd.IntN(201)-100))
	}
}

// observe takes a histogram one scrape further: new observations fall mostly into the lower buckets.
func observe(lines []line, rnd *rand.Rand) {
	if rnd.Float64() >= lines[0].busy {
		return
	}
	bounds := len(lines) - 2
	added, share := 0.0, float64(rnd.IntN(int(lines[0].rise)))
	for b := range bounds {
		added += float64(int(share))
		share *= 0.6
		lines[b].value += added
	}
	lines[bounds].value += added * 0.02 * rnd.Float64()
	lines[bounds+1].value += added
}

func (l *line) append(text []byte) []byte {
	text = append(text, l.prefix...)
	if l.fraction {
		text = strconv.AppendFloat(text, l.value, 'f', 4, 64)
	} else {
		text = strconv.AppendFloat(text, l.value, 'f', -1, 64)
	}
	return append(text, '\n')
}

func noun(i int) string {
	nouns := [...]string{"orders", "users", "invoices", "sessions", "payments", "products", "carts", "shipments", "returns", "reviews", "images", "searches", "tokens", "accounts", "reports", "exports", "imports"}
	return nouns[i%len(nouns)]
}
