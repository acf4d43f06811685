package mesh

import (
	"bytes"
	"compress/lzw"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode"

	"github.com/hashicorp/memberlist"
)

const (
	// maxState is what memberlist takes as the state of one side in a push/pull.
	maxState = 20 << 20
	// maxStream bounds one message on a stream: a state, and the members before it.
	maxStream = maxState + 1<<20
	// maxPacket bounds a packet, also after decompression. Peers fill 1,400 bytes.
	maxPacket = 64 << 10
	// maxMembers bounds the members that one push/pull may name, and those that we keep.
	maxMembers = 256
	// maxNesting bounds how often a packet may hold another: checksum, compression, compound.
	maxNesting = 4
)

// The types of memberlist's messages, as its wire format numbers them.
const (
	typePing         = 0
	typeIndirectPing = 1
	typeAck          = 2
	typeSuspect      = 3
	typeAlive        = 4
	typeDead         = 5
	typePushPull     = 6
	typeCompound     = 7
	typeUser         = 8
	typeCompress     = 9
	typeEncrypt      = 10
	typeNack         = 11
	typeChecksum     = 12
	typeError        = 13
	typeLabel        = 244
)

// guard looks at each message before memberlist does. memberlist v0.6.0 believes lengths, recurses and unpacks without
// a bound, and a peer, or without a key anybody, could end the process with one message. What the guard refuses is
// known by its reason and its sender; memberlist's own refusals are lines of text.
type guard struct {
	cluster string
	ring    *memberlist.Keyring // nil without a key.
}

// refusal says why traffic was refused.
type refusal struct {
	reason string
	why    string
	// cluster is the name that the other side gave, "" if it gave none.
	cluster string
}

func (r *refusal) Error() string { return r.why }

func reject(reason, format string, args ...any) *refusal {
	return &refusal{reason: reason, why: fmt.Sprintf(format, args...)}
}

// damaged makes a refusal of what a cursor has found.
func damaged(err error) error {
	var r *refusal
	switch {
	case errors.As(err, &r):
		return r
	case errors.Is(err, errEnded):
		return reject(reasonIncomplete, "%v", err)
	case errors.Is(err, errLong):
		return reject(reasonSize, "the message is too large: %v", err)
	default:
		return reject(reasonMalformed, "the message is malformed: %v", err)
	}
}

// packet checks a whole datagram.
func (g *guard) packet(b []byte) error {
	if len(b) == 0 {
		return reject(reasonMalformed, "the packet is empty")
	}
	if b[0] == typeLabel {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return reject(reasonMalformed, "the cluster name is cut off")
		}
		label := b[2 : 2+int(b[1])]
		if err := g.label(label); err != nil {
			return err
		}
		b = b[2+len(label):]
	} else if g.ring != nil {
		return reject(reasonPlaintext, "it is not encrypted, and this replica has a cluster key")
	}
	if g.ring != nil {
		plain, err := g.decrypt(b, []byte(g.cluster))
		if err != nil {
			return err
		}
		b = plain
	}
	if len(b) >= 5 && b[0] == typeChecksum {
		if crc32.ChecksumIEEE(b[5:]) != binary.BigEndian.Uint32(b[1:5]) {
			return reject(reasonMalformed, "the packet's checksum is wrong")
		}
		b = b[5:]
	}
	if err := g.command(b, 0); err != nil {
		return damaged(err)
	}
	return nil
}

// label checks the cluster name that a message bears.
func (g *guard) label(b []byte) error {
	switch name := Printable(string(b), 64); {
	case string(b) != g.cluster:
		return &refusal{reason: reasonCluster, why: "it belongs to another cluster", cluster: name}
	case g.ring == nil:
		return &refusal{reason: reasonKey, why: "it is encrypted, and this replica has no cluster key", cluster: name}
	}
	return nil
}

// decrypt opens what is sealed with one of the keys.
func (g *guard) decrypt(b, authenticated []byte) ([]byte, error) {
	const nonce, tag = 12, 16
	if len(b) < 1+nonce+tag {
		return nil, reject(reasonMalformed, "it is too short to be encrypted")
	}
	if b[0] != 1 {
		return nil, reject(reasonPlaintext, "it is not encrypted as this replica encrypts, and it has a cluster key")
	}
	for _, key := range g.ring.GetKeys() {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("use a cluster key: %w", err)
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return nil, fmt.Errorf("use a cluster key: %w", err)
		}
		if plain, err := gcm.Open(nil, b[1:1+nonce], b[1+nonce:], authenticated); err == nil {
			return plain, nil
		}
	}
	return nil, reject(reasonKey,
		"it is encrypted with a key that this replica does not have, or it was changed on the way")
}

// command checks one message of a packet.
func (g *guard) command(b []byte, nesting int) error {
	if len(b) == 0 {
		return errShort
	}
	if nesting > maxNesting {
		return errors.New("messages are nested too deep")
	}
	kind, b := b[0], b[1:]
	switch kind {
	case typeCompound:
		return g.compound(b, nesting)
	case typeCompress:
		c := &cursor{buf: b, limit: len(b)}
		plain, err := decompress(c, maxPacket)
		if err != nil {
			return err
		}
		return g.command(plain, nesting+1)
	case typeUser:
		return nil
	case typePing, typeIndirectPing, typeAck, typeSuspect, typeAlive, typeDead, typeNack:
		c := &cursor{buf: b, limit: len(b)}
		return c.fields(func(string) error { return c.skip(1) })
	default:
		return reject(reasonVersion, "the message has type %d, which this version does not know", kind)
	}
}

func (g *guard) compound(b []byte, nesting int) error {
	if len(b) < 1 || len(b) < 1+2*int(b[0]) {
		return errShort
	}
	sizes, rest := b[1:1+2*int(b[0])], b[1+2*int(b[0]):]
	for len(sizes) > 0 {
		n := int(binary.BigEndian.Uint16(sizes))
		if n > len(rest) {
			return errShort
		}
		if err := g.command(rest[:n], nesting+1); err != nil {
			return err
		}
		sizes, rest = sizes[2:], rest[n:]
	}
	return nil
}

// decompress unpacks a compressed message to at most most bytes.
func decompress(c *cursor, most int) ([]byte, error) {
	var packed []byte
	err := c.fields(func(key string) (err error) {
		switch key {
		case "Algo":
			algo, err := c.integer()
			if err == nil && algo != 0 {
				err = reject(reasonVersion, "it is compressed in a way that this version does not know")
			}
			return err
		case "Buf":
			packed, err = c.bytes(c.limit)
			return err
		default:
			return c.skip(1)
		}
	})
	if err != nil {
		return nil, err
	}
	r := lzw.NewReader(bytes.NewReader(packed), lzw.LSB, 8)
	plain, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	// It holds no resource and has no failure of its own to tell.
	_ = r.Close()
	switch {
	case err != nil:
		return nil, fmt.Errorf("decompress it: %w", err)
	case len(plain) > most:
		return nil, errLong
	case len(plain) == 0:
		return nil, errShort
	}
	return plain, nil
}

// stream reads one whole message from c and checks it. Only those who call bear the cluster name outside of it.
func (g *guard) stream(c *cursor, inbound bool) error {
	if err := g.message(c, inbound); err != nil {
		var n interface{ Timeout() bool }
		if errors.As(err, &n) {
			return err // The network's failure, not the sender's.
		}
		return damaged(err)
	}
	return nil
}

func (g *guard) message(c *cursor, inbound bool) error {
	kind, err := c.byte()
	if err != nil {
		return err
	}
	if kind == typeLabel && inbound {
		n, err := c.length(1)
		if err != nil {
			return err
		}
		label, err := c.take(n)
		if err != nil {
			return err
		}
		if err := g.label(label); err != nil {
			return err
		}
		if kind, err = c.byte(); err != nil {
			return err
		}
	} else if g.ring != nil && inbound {
		return reject(reasonPlaintext, "it is not encrypted, and this replica has a cluster key")
	}
	switch {
	case g.ring == nil && kind == typeEncrypt:
		return reject(reasonKey, "it is encrypted, and this replica has no cluster key")
	case g.ring != nil && kind != typeEncrypt:
		return reject(reasonPlaintext, "it is not encrypted, and this replica has a cluster key")
	case g.ring != nil:
		n, err := c.length(4)
		if err != nil {
			return err
		}
		authenticated := binary.BigEndian.AppendUint32([]byte{typeEncrypt}, uint32(n))
		sealed, err := c.take(n)
		if err != nil {
			return err
		}
		plain, err := g.decrypt(sealed, append(authenticated, g.cluster...))
		if err != nil {
			return err
		}
		c = &cursor{buf: plain, limit: maxStream, grow: c.grow}
		if kind, err = c.byte(); err != nil {
			return err
		}
	}
	if kind == typeCompress {
		if c.grow != nil {
			// What it unpacks to is not known before; most is what counts.
			if err := c.grow(len(c.buf)); err != nil {
				return err
			}
		}
		plain, err := decompress(c, maxStream)
		if err != nil {
			return err
		}
		kind, c = plain[0], &cursor{buf: plain, pos: 1, limit: maxStream}
	}
	return g.body(c, kind)
}

// body checks a message of a stream after all that may be wrapped around it.
func (g *guard) body(c *cursor, kind byte) error {
	switch kind {
	case typePushPull:
		return g.pushPull(c)
	case typeUser:
		size := int64(0)
		err := c.fields(func(key string) (err error) {
			if key != "UserMsgLen" {
				return c.skip(1)
			}
			size, err = c.integer()
			return err
		})
		if err != nil {
			return err
		}
		return c.pass(size)
	case typePing, typeAck, typeError:
		return c.fields(func(string) error { return c.skip(1) })
	default:
		return reject(reasonVersion, "the message has type %d, which this version does not know", kind)
	}
}

// pass goes over what a header announces.
func (c *cursor) pass(n int64) error {
	if n < 0 || n > maxState {
		return errLong
	}
	_, err := c.take(int(n))
	return err
}

func (g *guard) pushPull(c *cursor) error {
	var nodes, state int64
	join := false
	err := c.fields(func(key string) (err error) {
		switch key {
		case "Nodes":
			nodes, err = c.integer()
		case "UserStateLen":
			state, err = c.integer()
		case "Join":
			join, err = c.boolean()
		default:
			err = c.skip(1)
		}
		return err
	})
	if err != nil {
		return err
	}
	// Members that are gone are named for a while, too.
	if nodes < 0 || nodes > 4*maxMembers {
		return errLong
	}
	for range nodes {
		if err := g.node(c, join); err != nil {
			return err
		}
	}
	return c.pass(state)
}

// node checks one member of a push/pull. memberlist takes for granted that all six versions are there.
func (g *guard) node(c *cursor, join bool) error {
	versions, alive := 0, false
	foreign := ""
	err := c.fields(func(key string) (err error) {
		var b []byte
		switch key {
		case "Name":
			_, err = c.bytes(maxNameBytes)
		case "Addr":
			_, err = c.bytes(16)
		case "Meta":
			b, err = c.bytes(memberlist.MetaMaxSize)
			if card, ok := decodeCard(b); ok == nil && card.Cluster != "" && card.Cluster != g.cluster {
				foreign = card.Cluster
			}
		case "Vsn":
			b, err = c.bytes(64)
			versions = len(b)
		case "State":
			var n int64
			n, err = c.integer()
			alive = n == 0
		case "Port", "Incarnation":
			_, err = c.integer()
		default:
			err = c.skip(1)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case versions < 6:
		return reject(reasonVersion, "a member does not say which versions it speaks")
	case join && alive && foreign != "":
		return &refusal{reason: reasonCluster, why: "it belongs to another cluster", cluster: foreign}
	}
	return nil
}

// Printable makes text of others fit to be shown and logged: no control characters, at most most characters.
func Printable(s string, most int) string {
	n := 0
	return strings.Map(func(r rune) rune {
		n++
		switch {
		case n > most:
			return -1
		case !unicode.IsPrint(r) || r == '\uFFFD': // Also what turns the rest of a line around.
			return '?'
		}
		return r
	}, s)
}
