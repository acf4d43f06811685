package federate

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// FuzzPull holds what the package promises against any answer: no panic,
// nothing that is not listed, always our origin label, no two samples of one
// series, every error a sentence of ours.
func FuzzPull(f *testing.F) {
	now := time.Now().UnixMilli()
	f.Add([]byte("# TYPE a histogram\na_bucket{le=\"1\",source=\"x\"} 1\nb{job=\"j\",user=\"u\"} 2 1\nb 3\n"), uint8(0))
	f.Add([]byte("# TYPE b counter\nb_total{job=\"j\"} 2 1.5 # {id=\"1\"} 3\n{\"b\",job=\"j\"} 1\n# EOF\n"), uint8(1))
	f.Add(protobuf(f, nativeHistogram("a", 4, now), untyped("b", 1, pair("job", "j"), pair("source", "x")), untyped("c", 1), nativeHistogram("b", 5, 0)), uint8(2))
	f.Add([]byte{0, 0, 0, 5, 0x0a, 1, 'b', 0x22, 0}, uint8(2))
	c := section(f, "north", "http://h", allow(f, `{__name__=~"a.*"}`, "le", "job"), allow(f, "b", "job"))
	c.Labels = map[string]string{"region": "r"}
	c.BodySizeLimit, c.SampleLimit = 1<<20, 1000
	filter, err := newFilter(c)
	if err != nil {
		f.Fatal(err)
	}
	formats := []format{textFormat, openMetricsFormat, protobufFormat}
	f.Fuzz(func(t *testing.T, data []byte, kind uint8) {
		known := newCatalogue()
		ours := labels.FromStrings("__name__", "b", "job", "federate", "region", "r", "source", "north")
		known.add(&series{lset: ours, hash: known.hash(ours), ours: true})
		in := newIntake(filter, known, 1, now)
		for part := range 2 { // the same answer twice is no collision
			in.part = part
			if err := in.read(bytes.NewReader(data), formats[int(kind)%len(formats)]); err != nil {
				if _, ok := errors.AsType[*fault](err); !ok {
					t.Fatalf("error is no sentence: %v", err)
				}
				break
			}
		}
		a := in.finish()
		met := map[string]bool{}
		for _, s := range a.samples {
			ls := s.series.lset
			name := ls.Get(model.MetricNameLabel)
			if name != "b" && (name == "" || name[0] != 'a') {
				t.Errorf("%s is not listed", ls)
			}
			if ls.Get("source") != "north" || ls.Get("region") != "r" {
				t.Errorf("%s lacks our labels", ls)
			}
			if _, twice := ls.HasDuplicateLabelNames(); twice || !ls.IsValid(model.UTF8Validation) {
				t.Errorf("%s is not valid", ls)
			}
			ls.Range(func(l labels.Label) {
				switch l.Name {
				case "__name__", "source", "region", "job":
				case "le":
					if name == "b" {
						t.Errorf("%s keeps le", ls)
					}
				default:
					t.Errorf("%s keeps %s", ls, l.Name)
				}
			})
			if met[ls.String()] || labels.Equal(ls, ours) {
				t.Errorf("%s is there twice", ls)
			}
			met[ls.String()] = true
			if s.h != nil && s.h.Validate() != nil || s.fh != nil && s.fh.Validate() != nil {
				t.Errorf("%s has an invalid histogram", ls)
			}
		}
		if len(a.samples)+a.dropped+a.collisions > a.scraped {
			t.Errorf("%d samples came, %d are kept, %d dropped, %d collided", a.scraped, len(a.samples), a.dropped, a.collisions)
		}
	})
}
