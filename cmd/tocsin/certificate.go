package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// certificateCmd makes what a reader needs: a program that is no replica and may read the replicas' data.
type certificateCmd struct {
	KeyFile string `name:"key-file" required:"" placeholder:"FILE" help:"The file that cluster.key_file names. Its first key signs."`
	Cluster string `name:"cluster" required:"" placeholder:"NAME" help:"The cluster's name, as cluster.name has it. The certificate is good for no other cluster, even with the same key."`
	Name    string `name:"name" required:"" placeholder:"NAME" help:"A name for the reader, by which logs show it."`
	Out     string `name:"out" required:"" placeholder:"DIR" help:"Directory for ca.pem, cert.pem and key.pem, made if need be. What is there is not overwritten."`
}

// Run writes the three files and says how they are used. Of the keys it prints nothing.
func (c *certificateCmd) Run(k *kong.Context, w io.Writer) error {
	if err := config.CheckClusterName(c.Cluster); err != nil {
		return usageError{fmt.Errorf("--cluster: %w", err)}
	}
	keys, err := config.ReadClusterKeys(c.KeyFile, slog.New(warnings{w: k.Stderr}))
	if err != nil {
		return err
	}
	authorities, cert, key, err := mesh.NewReaderCertificate(keys, c.Cluster, c.Name)
	if err != nil {
		return usageError{err}
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	if err := writeNew(c.Out, newFile{"ca.pem", authorities, 0o644}, newFile{"cert.pem", cert, 0o644}, newFile{"key.pem", key, 0o600}); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(c.Out, name) }
	_, err = fmt.Fprintf(w, `Wrote %s, %s and %s.

A stock Thanos Query reads the replicas with them (one --endpoint for each replica):

  thanos query \
    --grpc-client-tls-secure \
    --grpc-client-tls-ca=%s \
    --grpc-client-tls-cert=%s \
    --grpc-client-tls-key=%s \
    --grpc-client-server-name=%s \
    --endpoint=REPLICA:10901 \
    --query.replica-label=replica --query.replica-label=zone

The certificate is good for as long as the replicas accept the first key of %s.
`, in("ca.pem"), in("cert.pem"), in("key.pem"), in("ca.pem"), in("cert.pem"), in("key.pem"), mesh.ServerName, c.KeyFile)
	return err
}

type newFile struct {
	name    string
	content []byte
	mode    fs.FileMode
}

// writeNew writes all of the files, or none.
func writeNew(dir string, files ...newFile) (err error) {
	var made []string
	defer func() {
		if err == nil {
			return
		}
		for _, path := range made {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s is there already; nothing was written", path)
		}
		if err != nil {
			return fmt.Errorf("write a file of the certificate: %w", err)
		}
		made = append(made, path)
		_, err = out.Write(f.content)
		if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
			return fmt.Errorf("write a file of the certificate: %w", err)
		}
	}
	return nil
}
