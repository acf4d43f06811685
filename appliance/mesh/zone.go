package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
)

const (
	// InstanceData is where cloud-init leaves what it knows of the machine, without secrets.
	InstanceData = "/run/cloud-init/instance-data.json"

	zoneAuto    = "auto"
	zoneDefault = "default"
	// maxInstanceData bounds the file in bytes. It holds the user data too; clouds allow some ten KiB of that.
	maxInstanceData = 4 << 20
	maxZone         = 64
)

// zonePlaces are where the zone stands in the instance data, best first: cloud-init's standard keys, then what single
// data sources know, then the region, which is better than nothing.
var zonePlaces = [][]string{
	{"v1", "availability_zone"},
	{"v1", "availability-zone"},
	{"ds", "meta_data", "placement", "availability-zone"},
	{"ds", "meta_data", "availability_zone"},
	{"ds", "meta_data", "availability-zone"},
	{"ds", "meta_data", "zone"},
	{"v1", "region"},
	{"ds", "meta_data", "placement", "region"},
	{"ds", "meta_data", "region"},
}

// Zone is the zone that this replica stands in: the configured one, or for "auto" and "" the one that cloud-init's
// instance data names, or "default" with a warning.
func Zone(configured, instanceData string, logger *slog.Logger) string {
	if configured != "" && configured != zoneAuto {
		return configured
	}
	zone, place, err := readZone(instanceData)
	if err != nil {
		logger.Warn("the zone of this replica is not known; set replica.zone, so that the replicas know which of them fail together",
			"zone", zoneDefault, "err", err)
		return zoneDefault
	}
	logger.Info("zone found in cloud-init's instance data", "zone", zone, "field", place)
	return zone
}

func readZone(path string) (zone, place string, err error) {
	b, err := readInstanceData(path)
	if err != nil {
		return "", "", fmt.Errorf("read cloud-init's instance data: %w", err)
	}
	var root any
	if err := json.Unmarshal(b, &root); err != nil {
		// The error of the decoder may quote the content.
		return "", "", fmt.Errorf("read cloud-init's instance data %s: not JSON", path)
	}
	unusable := ""
	for _, p := range zonePlaces {
		value, ok := dig(root, p).(string)
		if !ok || value == "" {
			continue
		}
		if zone, ok := cleanZone(value); ok {
			return zone, strings.Join(p, "."), nil
		}
		unusable = strings.Join(p, ".")
	}
	if unusable != "" {
		return "", "", fmt.Errorf("the field %s of %s is not the name of a zone", unusable, path)
	}
	return "", "", fmt.Errorf("%s names no zone", path)
}

// readInstanceData reads a regular file of bounded size: a pipe would block.
func readInstanceData(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no %s", path)
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // It was only read.
	b, err := io.ReadAll(io.LimitReader(f, maxInstanceData+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxInstanceData {
		return nil, fmt.Errorf("%s is larger than %d MiB", path, maxInstanceData>>20)
	}
	return b, nil
}

// dig follows keys through JSON objects; nil where there is none.
func dig(v any, keys []string) any {
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// cleanZone holds a zone to what fits into labels and logs. Google's metadata give a whole path, whose end is the zone.
func cleanZone(s string) (string, bool) {
	s = s[strings.LastIndexByte(s, '/')+1:]
	if s == "" || len(s) > maxZone || strings.EqualFold(s, "none") || strings.EqualFold(s, zoneAuto) {
		return "", false
	}
	for _, r := range s {
		word := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !word && r != '.' && r != '-' && r != '_' {
			return "", false
		}
	}
	return s, true
}
