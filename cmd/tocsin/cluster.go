package main

import (
	"fmt"
	"io"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// clusterCmd holds what is done for a cluster as a whole.
type clusterCmd struct {
	Keygen      keygenCmd      `cmd:"" help:"Print a new cluster key: one line for the file that cluster.key_file names. Make one for all replicas, keep it secret."`
	Certificate certificateCmd `cmd:"" help:"Make a certificate for a program that is no replica and may read the replicas' data over gRPC, as a stock Thanos Query does: a reader. It may read, and nothing else."`
}

type keygenCmd struct{}

// Run prints the key and nothing else, so that the output can be the file.
func (keygenCmd) Run(w io.Writer) error {
	key, err := config.NewClusterKey()
	if err != nil {
		return fmt.Errorf("make a cluster key: %w", err)
	}
	_, err = fmt.Fprintln(w, key)
	return err
}
