package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/alecthomas/kong"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/tocsin-io/tocsin/appliance/bucket"
	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// verifySayEvery is how often a verification says how far it is.
	verifySayEvery = 2 * time.Second
	// maxCell bounds what a table shows of what somebody wrote into the bucket, maxLines how many lines a list in it has; JSON has all.
	maxCell, maxLines = 200, 50
)

// bucketCmd holds what looks at the blocks in the bucket, without a replica, and changes nothing there.
type bucketCmd struct {
	Ls      lsCmd      `cmd:"" help:"List the blocks in the bucket, oldest first, what cannot be read before all."`
	Inspect inspectCmd `cmd:"" help:"Tell everything about a block: its meta.json, files, windows, marks."`
	Verify  verifyCmd  `cmd:"" help:"Read blocks wholly and say what is wrong with them: sizes, hashes, index, every chunk. One after the other is put into a temporary folder, below the one that TMPDIR names. Exit code 1 if one is broken."`
	Stats   statsCmd   `cmd:"" help:"Sum the blocks up: bytes, bytes per sample, windows that are there, or not whole, or missing."`
}

// surveyFlags say where the bucket is.
type surveyFlags struct {
	ConfigFile       string         `name:"config.file" placeholder:"FILE" help:"Configuration file of a replica, with a section bucket. Default: /etc/tocsin/tocsin.yml, and the built-in configuration where that does not exist."`
	StoragePath      string         `name:"storage.path" default:"data" help:"Data directory of the replica, below which the bucket of the built-in configuration is."`
	MinBlockDuration model.Duration `name:"storage.tsdb.min-block-duration" hidden:"" default:"2h" help:"Shortest block, for tests."`
	Output           string         `name:"output" enum:"table,json" default:"table" help:"Format: ${enum}. Times in JSON are Unix milliseconds."`
}

func (f surveyFlags) open(k *kong.Context) (*bucket.Survey, error) {
	logger := slog.New(warnings{w: k.Stderr})
	file, self := f.ConfigFile, checkedSelf
	self.StoragePath = f.StoragePath
	load := func() (*config.Config, error) { return config.Load(file, self, logger) }
	if file == "" {
		file = defaultConfigFile
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			load = func() (*config.Config, error) { return config.Builtin(self) }
		}
	}
	cfg, err := load()
	if err != nil {
		return nil, err
	}
	if cfg.Bucket == nil {
		return nil, usageError{fmt.Errorf("%s has no section bucket", file)}
	}
	return bucket.NewSurvey(logger, cfg.Bucket, time.Duration(f.MinBlockDuration))
}

// look opens the bucket for as long as do lasts.
func (f surveyFlags) look(k *kong.Context, do func(context.Context, *bucket.Survey) error) error {
	ctx, stop := interruptible()
	defer stop()
	s, err := f.open(k)
	if err != nil {
		return err
	}
	err = errors.Join(do(ctx, s), s.Close())
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// print writes v as JSON, or what table does.
func (f surveyFlags) print(w io.Writer, v any, table func(io.Writer)) error {
	if f.Output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	table(t)
	return t.Flush()
}

type lsCmd struct{ surveyFlags }

// Run prints a line for each block.
func (c *lsCmd) Run(k *kong.Context, w io.Writer) error {
	return c.look(k, func(ctx context.Context, s *bucket.Survey) error {
		blocks, err := s.Blocks(ctx)
		if err != nil {
			return err
		}
		return c.print(w, blocks, func(w io.Writer) {
			fmt.Fprintln(w, "BLOCK\tFROM\tTO\tLEVEL\tRESOLUTION\tSERIES\tSAMPLES\tBYTES\tSTATE\tLABELS")
			for _, b := range blocks {
				if b.State == bucket.BlockPartial {
					fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t-\t-\t%s\t%s\n", b.ID, b.State, shown(b.Problem))
					continue
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\t%d\t%s\t%s\t%s\n", b.ID, moment(b.From), moment(b.To), b.Level, resolution(b.Resolution),
					b.Series, b.Samples, size(b.Bytes), b.State, shownLabels(b.Labels))
			}
		})
	})
}

type inspectCmd struct {
	surveyFlags
	Block blockID `arg:"" placeholder:"BLOCK" help:"Name of the block."`
}

// blockID is a ULID on the command line.
type blockID struct{ ulid.ULID }

// UnmarshalText refuses what is no name of a block.
func (b *blockID) UnmarshalText(text []byte) error {
	id, err := ulid.ParseStrict(string(text))
	if err != nil {
		return fmt.Errorf("%q is no name of a block", text)
	}
	b.ULID = id
	return nil
}

// Run prints what there is to know.
func (c *inspectCmd) Run(k *kong.Context, w io.Writer) error {
	return c.look(k, func(ctx context.Context, s *bucket.Survey) error {
		in, err := s.Inspect(ctx, c.Block.ULID)
		if err != nil {
			return err
		}
		return c.print(w, in, func(w io.Writer) { c.table(w, in) })
	})
}

func (c *inspectCmd) table(w io.Writer, in *bucket.Inspection) {
	row := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	row("block", "%s", in.ID)
	row("state", "%s", in.State)
	if in.Problem != "" {
		row("because", "%s", shown(in.Problem))
	}
	if in.State != bucket.BlockPartial {
		row("from", "%s", moment(in.From))
		row("to", "%s", moment(in.To))
		row("level", "%d", in.Level)
		row("resolution", "%s", resolution(in.Resolution))
		row("source", "%s", shown(in.Source))
		row("labels", "%s", shownLabels(in.Labels))
		row("series", "%d", in.Series)
		row("samples", "%d", in.Samples)
		row("bytes", "%d (%s a sample)", in.Bytes, perSample(in.Bytes, in.Samples))
		row("made", "%s", moment(in.Made.UnixMilli()))
		if !in.Uploaded.IsZero() {
			row("uploaded", "%s", moment(in.Uploaded.UnixMilli()))
		}
	}
	for _, m := range in.Marks {
		why := m.Problem
		if why == "" {
			why = strings.TrimPrefix(m.Reason+": "+m.Details, ": ")
		}
		if !m.Since.IsZero() {
			why = "since " + moment(m.Since.UnixMilli()) + ": " + why
		}
		row("mark", "%s: %s", m.Kind, shown(why))
	}
	lines(w, in.Windows, func(win bucket.WindowStatus) {
		by, whole := "uploaded by "+shown(win.By), "whole"
		if win.By == "" {
			by = "compacted, which replica uploaded it is not known any more"
		}
		if !win.Whole {
			whole = "not whole"
		}
		row("window", "%s - %s, %s, %s", moment(win.Begin), moment(win.Begin+time.Duration(c.MinBlockDuration).Milliseconds()), whole, by)
	})
	lines(w, in.Sources, func(id string) { row("made of", "%s", id) })
	lines(w, in.Parents, func(id string) { row("parent", "%s", id) })
	lines(w, in.Files, func(f bucket.FileStatus) {
		if f.Problem != "" {
			row("file", "%s, %d bytes, %s", shown(f.Name), f.Bytes, shown(f.Problem))
			return
		}
		row("file", "%s, %d bytes", shown(f.Name), f.Bytes)
	})
}

// lines prints the first of a list, and how many are left.
func lines[T any](w io.Writer, list []T, print func(T)) {
	for _, v := range list[:min(len(list), maxLines)] {
		print(v)
	}
	if n := len(list) - maxLines; n > 0 {
		fmt.Fprintf(w, "\tand %d more\n", n)
	}
}

type verifyCmd struct {
	surveyFlags
	Blocks []blockID `arg:"" optional:"" placeholder:"BLOCK" help:"Blocks to read. Default: all that are not marked for deletion."`
}

// verdict is what came out about a block.
type verdict struct {
	Block   string `json:"block"`
	Result  string `json:"result"`
	Problem string `json:"problem,omitempty"`
}

// Results of a verification.
const (
	verifiedOK, verifiedBroken = "ok", "broken"
	// verifiedGone is a block that was deleted meanwhile, verifiedSkipped one that is not read.
	verifiedGone, verifiedSkipped = "gone", "skipped"
)

// Run reads one block after the other.
func (c *verifyCmd) Run(k *kong.Context, w io.Writer) error {
	return c.look(k, func(ctx context.Context, s *bucket.Survey) error {
		blocks, err := s.Blocks(ctx)
		if err != nil {
			return err
		}
		if len(c.Blocks) > 0 {
			if blocks, err = c.named(blocks); err != nil {
				return err
			}
		}
		all, broken := []verdict{}, 0
		for i, b := range blocks {
			v, err := c.verify(ctx, s, b, fmt.Sprintf("%s (%d of %d)", b.ID, i+1, len(blocks)), k.Stderr)
			if err != nil {
				return err
			}
			if v.Result == verifiedBroken {
				broken++
			}
			all = append(all, v)
			if c.Output == "table" {
				fmt.Fprintln(w, strings.TrimSpace(fmt.Sprintf("%s  %-7s  %s", v.Block, v.Result, shown(v.Problem))))
			}
		}
		if c.Output == "json" {
			if err := c.print(w, all, nil); err != nil {
				return err
			}
		}
		if broken > 0 {
			return fmt.Errorf("%d of %d blocks are broken", broken, len(blocks))
		}
		return nil
	})
}

// named are the blocks that the command line names.
func (c *verifyCmd) named(blocks []bucket.BlockStatus) ([]bucket.BlockStatus, error) {
	var chosen []bucket.BlockStatus
	for _, id := range c.Blocks {
		i := slices.IndexFunc(blocks, func(b bucket.BlockStatus) bool { return b.ID == id.String() })
		if i < 0 {
			return nil, fmt.Errorf("block %s: %w", id, bucket.ErrNoBlock)
		}
		chosen = append(chosen, blocks[i])
	}
	return chosen, nil
}

// verify reads a block, and says from time to time how far it is.
func (c *verifyCmd) verify(ctx context.Context, s *bucket.Survey, b bucket.BlockStatus, name string, w io.Writer) (verdict, error) {
	v := verdict{Block: b.ID, Result: verifiedOK}
	switch {
	case b.State == bucket.BlockMarked && len(c.Blocks) == 0:
		v.Result, v.Problem = verifiedSkipped, "it is marked for deletion"
		return v, nil
	case ctx.Err() != nil:
		return v, ctx.Err()
	}
	id, err := ulid.ParseStrict(b.ID)
	if err != nil {
		return v, fmt.Errorf("block %s: %w", b.ID, err)
	}
	progress := &bucket.Progress{}
	ended, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		ticker := time.NewTicker(verifySayEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
				fmt.Fprintf(w, "%s %s\n", name, progress)
			}
		}
	}()
	broken, err := s.Verify(ctx, id, os.TempDir(), progress)
	close(ended)
	<-told
	switch {
	case err != nil:
		return v, err
	case errors.Is(broken, bucket.ErrNoMeta) && b.State != bucket.BlockPartial:
		v.Result, v.Problem = verifiedGone, "it was deleted meanwhile"
	case errors.Is(broken, bucket.ErrNoMeta) && len(c.Blocks) == 0:
		v.Result, v.Problem = verifiedSkipped, broken.Error()
	case broken != nil:
		v.Result, v.Problem = verifiedBroken, broken.Error()
	}
	return v, nil
}

type statsCmd struct{ surveyFlags }

// Run prints sums.
func (c *statsCmd) Run(k *kong.Context, w io.Writer) error {
	return c.look(k, func(ctx context.Context, s *bucket.Survey) error {
		blocks, err := s.Blocks(ctx)
		if err != nil {
			return err
		}
		st := s.Stats(blocks)
		return c.print(w, st, func(w io.Writer) {
			fmt.Fprintf(w, "bucket\t%s\n", shown(s.Where()))
			fmt.Fprintf(w, "blocks\t%d\n", len(blocks))
			for _, state := range []bucket.BlockState{bucket.BlockOK, bucket.BlockMarked, bucket.BlockQuarantined, bucket.BlockPartial} {
				fmt.Fprintf(w, "  %s\t%d\n", state, st.States[state])
			}
			fmt.Fprintf(w, "bytes\t%d (%s)\n", st.Bytes, size(st.Bytes))
			fmt.Fprintf(w, "samples\t%d\n", st.Samples)
			if st.BytesPerSample > 0 {
				fmt.Fprintf(w, "bytes per sample\t%.2f (not downsampled)\n", st.BytesPerSample)
			}
			if len(st.Levels) > 0 {
				fmt.Fprintln(w, "\nLEVEL\tRESOLUTION\tBLOCKS\tBYTES\tSAMPLES\tBYTES PER SAMPLE")
			}
			lines(w, st.Levels, func(l bucket.LevelStats) {
				fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%d\t%s\n", l.Level, resolution(l.Resolution), l.Blocks, size(l.Bytes), l.Samples, perSample(l.Bytes, l.Samples))
			})
			lines(w, st.Clusters, func(cl bucket.ClusterStats) {
				fmt.Fprintf(w, "\nwindows of %s\n", shownLabels(cl.Labels))
				fmt.Fprintf(w, "  from\t%s\n  to\t%s\n", moment(cl.From), moment(cl.To))
				fmt.Fprintf(w, "  whole\t%d\n  not whole\t%d\n  missing\t%d\n", cl.Whole, cl.NotWhole, cl.Missing)
				lines(w, cl.Gaps, func(g bucket.Gap) {
					fmt.Fprintf(w, "  gap\t%s - %s, %d windows\n", moment(g.From), moment(g.To), g.Windows)
				})
			})
		})
	})
}

// moment is a time in Unix milliseconds for people.
func moment(ms int64) string {
	return strings.TrimSuffix(time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000"), ".000") + "Z"
}

func resolution(ms int64) string {
	if ms == 0 {
		return "raw"
	}
	return model.Duration(time.Duration(ms) * time.Millisecond).String()
}

func size(bytes int64) string {
	v, unit := float64(bytes), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", bytes)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

func perSample(bytes int64, samples uint64) string {
	if samples == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", float64(bytes)/float64(samples))
}

func shownLabels(m map[string]string) string { return shown(labels.FromMap(m).String()) }

// shown is a text out of the bucket as a terminal may get it: short, and without what would control it.
func shown(text string) string {
	if len(text) > maxCell {
		cut := maxCell
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "..."
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}
