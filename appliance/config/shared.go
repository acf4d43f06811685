package config

import "github.com/prometheus/prometheus/model/labels"

// ReplicaLabel and ZoneLabel are the external labels that tell the replicas apart.
const (
	ReplicaLabel = "replica"
	ZoneLabel    = "zone"
)

// Shared are the external labels without those that tell the replicas apart, replica and zone: what leaves a replica
// for people, as alerts do, must be the same from every one.
func Shared(external labels.Labels) labels.Labels {
	return labels.NewBuilder(external).Del(ReplicaLabel, ZoneLabel).Labels()
}
