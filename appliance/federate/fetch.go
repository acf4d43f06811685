package federate

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
)

var (
	protobufFormat    = format{"application/vnd.google.protobuf", protobufFrames}
	openMetricsFormat = format{"application/openmetrics-text", openMetricsFrames}
	textFormat        = format{"text/plain", textFrames}
)

// acceptHeader asks for protobuf first, the only format that carries native
// histograms, then for the text formats as Prometheus's scrapers do.
func acceptHeader() string {
	weight := len(promconfig.DefaultProtoFirstScrapeProtocols) + 1
	var parts []string
	for _, p := range promconfig.DefaultProtoFirstScrapeProtocols {
		h := promconfig.ScrapeProtocolsHeaders[p]
		if p == promconfig.PrometheusText1_0_0 || p == promconfig.OpenMetricsText1_0_0 {
			h += ";" + model.EscapingKey + "=" + model.AllowUTF8
		}
		parts = append(parts, h+";q=0."+strconv.Itoa(weight))
		weight--
	}
	return strings.Join(append(parts, "*/*;q=0."+strconv.Itoa(weight)), ",")
}

// formatOf picks the format by the Content-Type of an answer. Without one it is
// text, as Prometheus before 3.0 took it.
func formatOf(contentType string) (format, error) {
	if contentType == "" {
		return textFormat, nil
	}
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err == nil {
		switch mediaType {
		case protobufFormat.contentType:
			if e := params["encoding"]; e == "" || e == "delimited" {
				return protobufFormat, nil
			}
		case openMetricsFormat.contentType:
			return openMetricsFormat, nil
		case textFormat.contentType:
			return textFormat, nil
		}
	}
	hint := ""
	if mediaType == "text/html" {
		hint = "; a login page or a proxy may stand in front of it"
	}
	return format{}, faultf(resultContentType, "answer is of type %q, which is no exposition format%s", clip(contentType, 100), hint)
}

// fetch asks the upstream and takes its answers in. The error is a *fault.
func (u *upstream) fetch(ctx context.Context, in *intake) error {
	left := u.filter.bodyBytes
	for part, url := range u.requests {
		in.part = part
		if err := u.fetchOne(ctx, url, &left, in); err != nil {
			return u.transportFault(ctx, err)
		}
	}
	return nil
}

// fetchOne makes one request. left is what remains of the body size limit, which
// holds for all requests of a pull together.
func (u *upstream) fetchOne(ctx context.Context, url string, left *int64, in *intake) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("build the request: %w", err)
	}
	req.Header.Set("Accept", acceptHeader())
	// Set by us, so that the transport does not decompress behind our back
	// without a limit.
	req.Header.Set("Accept-Encoding", "gzip")
	req.Header.Set("User-Agent", "Tocsin")
	req.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", strconv.FormatFloat(time.Duration(u.cfg.Timeout).Seconds(), 'f', -1, 64))

	resp, err := u.client.Do(req)
	if err != nil {
		return err
	}
	// Not drained: what is left unread may have no end. The connection is
	// closed in that case, which is right.
	defer resp.Body.Close() //nolint:errcheck // reading is over
	if resp.StatusCode != http.StatusOK {
		return u.statusFault(resp.StatusCode)
	}
	f, err := formatOf(resp.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	wire := &source{ctx: ctx, r: resp.Body, limit: u.filter.bodyBytes, left: u.filter.bodyBytes}
	err = u.decode(ctx, wire, resp.Header.Get("Content-Encoding"), f, left, in)
	if wire.err != nil {
		return wire.err // the connection's own error explains what follows from it
	}
	return err
}

func (u *upstream) decode(ctx context.Context, wire *source, encoding string, f format, left *int64, in *intake) error {
	switch encoding {
	case "", "identity":
		wire.left = *left
		err := in.read(wire, f)
		*left = wire.left
		return err
	case "gzip":
		gz, err := gzip.NewReader(wire)
		if err != nil {
			return errGzip
		}
		plain := &source{ctx: ctx, r: gz, limit: u.filter.bodyBytes, left: *left}
		err = in.read(plain, f)
		*left = plain.left
		if plain.err == nil {
			return err
		}
		if _, ok := errors.AsType[*fault](plain.err); ok || ctx.Err() != nil {
			return plain.err
		}
		return errGzip
	}
	return faultf(resultContentType, "answer has the content encoding %q, which was not asked for", clip(encoding, 50))
}

var errGzip = faultf(resultMalformed, "answer is not valid gzip")

// source reads at most left bytes and remembers the error that ended it. It
// looks at the clock itself: what is decompressed needs no connection that would
// end with the context.
type source struct {
	ctx   context.Context
	r     io.Reader
	limit int64 // for the sentence
	left  int64
	err   error // nil at a clean end
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		s.err = err
		return 0, err
	}
	// One byte beyond the limit is asked for, to tell "full" from "too large".
	if int64(len(p)) > s.left+1 {
		p = p[:s.left+1]
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if s.left < 0 {
		s.err = faultf(resultBodySize, "answer is larger than %d bytes (body_size_limit)", s.limit)
		s.left = 0
		return 0, s.err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
