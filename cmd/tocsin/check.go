package main

import (
	"fmt"
	"io"

	"github.com/tocsin-io/tocsin/appliance"
	"github.com/tocsin-io/tocsin/appliance/config"
)

type checkCmd struct {
	Features []string `name:"enable-feature" sep:"," placeholder:"FEATURE" help:"The features that the replica runs with: rules may need them."`

	File string `arg:"" help:"Configuration file (tocsin.yml) to check." placeholder:"FILE"`
}

// Run loads the file as `tocsin run` would. Its error is every finding.
func (c *checkCmd) Run(w io.Writer) error {
	if err := (&runCmd{Features: c.Features}).applyFeatures(&appliance.Options{}); err != nil {
		return usageError{err}
	}
	cfg, err := config.Load(c.File, config.Self{Address: "localhost:9090", Instance: "localhost:9090"}, nil)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s is good: %d scrape jobs, %d rule files, %d receivers, %d federation upstreams\n",
		c.File, len(cfg.ScrapeConfigs), len(cfg.RuleFiles), len(cfg.Alertmanager.Receivers), len(cfg.Federation))
	return err
}
