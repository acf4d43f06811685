package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"
)

// maxNameBytes bounds the name of a member.
const maxNameBytes = 253

// Card is what a member tells the others about itself.
type Card struct {
	Cluster string `json:"c"`
	Zone    string `json:"z,omitempty"`
	// HTTP and GRPC are the addresses, host:port, that the others reach it at; "" where it has none.
	HTTP    string    `json:"h,omitempty"`
	GRPC    string    `json:"g,omitempty"`
	Version string    `json:"v,omitempty"`
	Started time.Time `json:"s,omitzero"`
	// Completeness says how much of its data it has, from 0 to 1.
	Completeness float64 `json:"d"`
	// Config is where it stands with the configuration from the bucket; empty where that does not come from there.
	Config CardConfig `json:"k,omitzero"`
	// Drain is that somebody wants to stop it.
	Drain CardDrain `json:"w,omitzero"`
}

// CardDrain is how a member tells that somebody wants to stop it; empty where nobody does.
type CardDrain struct {
	// Claimed is since when, in Unix milliseconds by its own clock.
	Claimed int64 `json:"c"`
	// Held says that it may be stopped.
	Held bool `json:"h,omitempty"`
}

// CardConfig is how a member tells where it stands with the configuration from the bucket.
type CardConfig struct {
	// Hash is the beginning of the hash of what is in force, Seen of what is in the bucket; "" for none.
	Hash string `json:"h,omitempty"`
	Seen string `json:"n,omitempty"`
	// State is applied, refused or waiting.
	State string `json:"s,omitempty"`
}

// largestConfig is the longest that it can become.
var largestConfig = CardConfig{Hash: "0123456789ab", Seen: "0123456789ab", State: "applied"}

// largestDrain likewise; the milliseconds of the next two centuries have as many digits.
var largestDrain = CardDrain{Claimed: 9999999999999, Held: true}

// encodeCard packs a card into what memberlist takes as metadata, at most 512 bytes.
func encodeCard(c Card) ([]byte, error) {
	c.Started = c.Started.UTC().Truncate(time.Millisecond)
	c.Completeness = math.Round(c.Completeness*1e4) / 1e4
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode this replica's card: %w", err)
	}
	if len(b) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("this replica's card (cluster, zone, addresses, version) takes %d bytes, %d are allowed: "+
			"shorten replica.zone", len(b), memberlist.MetaMaxSize)
	}
	return b, nil
}

var errCard = errors.New("the member's card is malformed")

// decodeCard reads a card. Nothing at all is the card of a stock Alertmanager, which is empty.
func decodeCard(b []byte) (Card, error) {
	if len(b) == 0 {
		return Card{}, nil
	}
	if len(b) > memberlist.MetaMaxSize || !utf8.Valid(b) {
		return Card{}, errCard
	}
	var c Card
	if err := json.Unmarshal(b, &c); err != nil {
		return Card{}, errCard
	}
	for _, s := range []string{c.Cluster, c.Zone, c.HTTP, c.GRPC, c.Version, c.Config.Hash, c.Config.Seen, c.Config.State} {
		if s != Printable(s, memberlist.MetaMaxSize) {
			return Card{}, errCard
		}
	}
	if c.Cluster == "" || c.Completeness < 0 || c.Completeness > 1 {
		return Card{}, errCard
	}
	return c, nil
}
