package web

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mtx sync.Mutex
	b   strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	return l.b.String()
}

func TestShutdownLetsRequestsFinish(t *testing.T) {
	running, finish := make(chan struct{}), make(chan struct{})
	d := open(t, Options{API: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(running)
		<-finish
		fmt.Fprint(w, "whole")
	})})
	body := make(chan string, 1)
	go func() {
		resp, err := d.client.Get(d.base + "/api/v1/query")
		if err != nil {
			body <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		body <- string(b)
	}()
	<-running
	stopped := make(chan error, 1)
	go func() { stopped <- d.stop() }()
	<-d.live.Done() // the shutdown has begun
	close(finish)
	if got := <-body; got != "whole" {
		t.Errorf("answer %q", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestShutdownCutsWhatDoesNotFinish(t *testing.T) {
	running := make(chan struct{})
	d := open(t, Options{
		ShutdownGrace: 50 * time.Millisecond,
		API: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(running)
			<-r.Context().Done()
		}),
	})
	ended := make(chan error, 1)
	go func() {
		resp, err := d.client.Get(d.base + "/api/v1/query")
		if err == nil {
			resp.Body.Close()
		}
		ended <- err
	}()
	<-running
	start := time.Now()
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if err := <-ended; err == nil {
		t.Error("the client got an answer")
	}
}

// A subscriber to live notifications must not hold the shutdown.
func TestShutdownEndsLiveRequestsAtOnce(t *testing.T) {
	running := make(chan struct{})
	d := open(t, Options{
		ShutdownGrace: time.Hour,
		API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			close(running)
			<-r.Context().Done()
		}),
	})
	resp, err := d.client.Get(d.base + "/api/v1/notifications/live")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-running
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

func TestPanicClosesOneConnection(t *testing.T) {
	var log lockedBuffer
	d := open(t, Options{
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		API:    http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken on purpose") }),
	})
	if resp, err := d.client.Get(d.base + "/api/v1/query"); err == nil {
		resp.Body.Close()
		t.Error("the client got an answer")
	}
	if r := d.do(t, "GET", d.base+"/-/healthy", nil); r.code != 200 {
		t.Errorf("healthy after a panic: %d", r.code)
	}
	if got := log.String(); !strings.Contains(got, "broken on purpose") || !strings.Contains(got, "/api/v1/query") {
		t.Errorf("log: %s", got)
	}
}

func TestSlowHeadersAreCut(t *testing.T) {
	d := open(t, Options{ReadTimeout: 100 * time.Millisecond})
	c, err := net.Dial("tcp", strings.TrimPrefix(d.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		t.Fatal("the connection is still open")
	}
	if strings.Contains(string(b), "200 OK") {
		t.Errorf("answered %q", b)
	}
}

func TestHugeHeadersAreRefused(t *testing.T) {
	d := open(t, Options{})
	resp, err := d.client.Get(d.base + "/api/v1/query?query=" + strings.Repeat("x", 2*maxHeaderBytes))
	if err != nil {
		return // cut while it was still sending
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("code %d", resp.StatusCode)
	}
}

func TestMaxConnections(t *testing.T) {
	d := open(t, Options{MaxConnections: 1, AlertmanagerListen: "127.0.0.1:0"})
	addr := strings.TrimPrefix(d.base, "http://")
	ask := func(addr string, wait time.Duration) (net.Conn, error) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		_, err = bufio.NewReader(c).ReadString('\n')
		return c, err
	}
	first, err := ask(addr, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	second, err := ask(addr, 200*time.Millisecond)
	if err == nil {
		t.Error("a second connection was served")
	}
	am, err := ask(strings.TrimPrefix(d.am, "http://"), 20*time.Second)
	if err != nil {
		t.Errorf("the Alertmanager's listener waits for the others: %v", err)
	}
	am.Close()
	first.Close()
	// The one that waits gets its turn.
	if err := second.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(second).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Errorf("after the first has gone: %q %v", line, err)
	}
	second.Close()
}

// A client that stops reading is cut, and its handler with it.
func TestStalledReaderIsCut(t *testing.T) {
	ended := make(chan error, 1)
	reg := prometheus.NewRegistry()
	w, err := New(Options{Registerer: reg, Gatherer: reg, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	l := stallListener{w.listeners[0].(stallListener).Listener, 100 * time.Millisecond}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.Copy(w, io.LimitReader(zeros{}, 1<<30))
		ended <- err
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }()
	defer func() { s.Close(); <-served; w.Close() }()
	c, err := net.Dial("tcp", w.Addresses()["web"][0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case err := <-ended:
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("ended with %v, want a timeout", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the handler still writes")
	}
}

func TestWriteDeadlineOfAHandler(t *testing.T) {
	left, right := net.Pipe()
	defer left.Close()
	defer right.Close()
	c := &stallConn{Conn: left, after: time.Hour}
	if err := c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Write([]byte("x"))
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("write ended with %v, want a timeout", err)
	}
}
