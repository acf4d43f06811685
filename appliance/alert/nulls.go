package alert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// maxDepth is far deeper than anything the Alertmanager API takes.
const maxDepth = 32

// refuseNulls refuses a body with a null in a list, which upstream's generated decoder takes and its handlers then
// follow as a pointer. The body can be read again afterwards; its size is bounded where the request comes in. What is
// not JSON is left to upstream, which has a sentence for it.
func refuseNulls(r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Errorf("read the request's body: %w", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return findNull(body)
}

var errNull = errors.New("a list in the request has a null where an object belongs")

func findNull(body []byte) error {
	d := json.NewDecoder(bytes.NewReader(body))
	var lists []bool // For each open bracket, whether it is a list's.
	for {
		t, err := d.Token()
		if err != nil {
			return nil //nolint:nilerr // Not JSON, or its end: not ours to judge.
		}
		switch t {
		case json.Delim('['), json.Delim('{'):
			if lists = append(lists, t == json.Delim('[')); len(lists) > maxDepth {
				return fmt.Errorf("the request is nested deeper than %d", maxDepth)
			}
		case json.Delim(']'), json.Delim('}'):
			lists = lists[:len(lists)-1]
		case nil:
			if len(lists) > 0 && lists[len(lists)-1] {
				return errNull
			}
		}
	}
}
