package config

import (
	"errors"
	"fmt"
	"log/slog"
)

// ReadClusterKeys reads a file as cluster.key_file names it, with the same checks. Nothing of its content is in the
// error.
func ReadClusterKeys(path string, logger *slog.Logger) (Keys, error) {
	l := &loader{logger: logger}
	doc := newSection(clipUnlessKey(path), "", "", "", nil)
	keys := l.clusterKeys(doc, scalar(path), path)
	if found := append(doc.found, l.found...); len(found) > 0 {
		return nil, found
	}
	return keys, nil
}

// CheckClusterName tells what is wrong with the name of a cluster.
func CheckClusterName(name string) error {
	if p := clusterNameProblem(name); p != "" {
		return fmt.Errorf("%q is no name of a cluster: %w", clip(name), errors.New(p))
	}
	return nil
}
