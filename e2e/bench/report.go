package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// row is one line of a result: what was measured, of both sides.
type row struct {
	what         string
	ours, stock  float64
	format       string  // of the figures, "%.2f" unless given
	limit        float64 // the goal as a ratio, or as an absolute figure of ours where absolute is set; 0 is none
	absolute     bool
	withoutStock bool
}

// table prints rows as a Markdown table, so that they can be pasted into docs/performance.md as they are.
func (b *bench) table(title string, rows []row) {
	left := ours
	if b.control {
		left = "stock (control)"
	}
	b.compare(title, left, stock, rows)
}

// compare prints rows of two things that are neither ours nor stock in particular.
func (b *bench) compare(title, left, right string, rows []row) {
	cells := [][]string{{title, left, right, "ratio", "goal"}}
	for _, r := range rows {
		if r.format == "" {
			r.format = "%.2f"
		}
		c := []string{r.what, fmt.Sprintf(r.format, r.ours), "", "", ""}
		reached := r.ours
		if !r.withoutStock {
			c[2] = fmt.Sprintf(r.format, r.stock)
			if r.stock != 0 {
				c[3] = fmt.Sprintf("%.3f", r.ours/r.stock)
				if !r.absolute {
					reached = r.ours / r.stock
				}
			}
		}
		if r.limit > 0 {
			verdict := "met"
			if reached > r.limit {
				verdict = fmt.Sprintf("missed by %.1f %%", 100*(reached/r.limit-1))
			}
			c[4] = fmt.Sprintf("≤ %g, %s", r.limit, verdict)
		}
		cells = append(cells, c)
	}
	fmt.Fprintln(b.out)
	writeTable(b.out, cells)
	fmt.Fprintln(b.out)
}

func writeTable(to io.Writer, cells [][]string) {
	widths := make([]int, len(cells[0]))
	for _, c := range cells {
		for i, t := range c {
			widths[i] = max(widths[i], len([]rune(t)))
		}
	}
	for n, c := range cells {
		var l strings.Builder
		for i, t := range c {
			pad := strings.Repeat(" ", widths[i]-len([]rune(t)))
			if i == 0 {
				fmt.Fprintf(&l, "| %s%s |", t, pad)
			} else {
				fmt.Fprintf(&l, " %s%s |", pad, t)
			}
		}
		fmt.Fprintln(to, l.String())
		if n == 0 {
			l.Reset()
			for i, w := range widths {
				if i == 0 {
					fmt.Fprintf(&l, "|%s|", strings.Repeat("-", w+2))
				} else {
					fmt.Fprintf(&l, "%s:|", strings.Repeat("-", w+1))
				}
			}
			fmt.Fprintln(to, l.String())
		}
	}
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.out, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func median(d []time.Duration) float64 {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	if n := len(d); n%2 == 0 {
		return (d[n/2-1] + d[n/2]).Seconds() / 2
	}
	return d[len(d)/2].Seconds()
}

func mib(bytes float64) float64 { return bytes / (1 << 20) }
