package election

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What stands in the store. Values compared by a transaction have one spelling only: incarnations
// are lower-case hexadecimal without leading zeros, and any other spelling is malformed.

const (
	maxValue = 4096 // bytes of a value that is looked at
	maxKeys  = 1024 // keys under one group's prefix
)

// keys are the keys of one group.
type keys struct {
	prefix string
}

func keysOf(group string) keys { return keys{prefix: "/understudy/" + group + "/"} }

func (k keys) id() string                 { return k.prefix + "id" }
func (k keys) primary() string            { return k.prefix + "primary" }
func (k keys) inSync(name string) string  { return k.prefix + "insync/" + name }
func (k keys) replica(name string) string { return k.prefix + "replicas/" + name }

// An entry is one key's content, as far as it is looked at.
type entry struct {
	value []byte // at most maxValue+1 bytes
	mod   int64  // ModRevision
	lease int64
}

// newEntry copies what it keeps, so that an oversized value doesn't stay in memory.
func newEntry(value []byte, mod, lease int64) entry {
	return entry{value: slices.Clone(value[:min(len(value), maxValue+1)]), mod: mod, lease: lease}
}

// entries are one revision's content of a group, by full key.
type entries map[string]entry

// state decodes the entries. Malformed entries under replicas/ are left out and returned as
// skipped; any other malformed entry is the error, since a view that lacks a primary or somebody in
// sync is worse than none.
func (k keys) state(all entries, revision int64) (s State, skipped []*MalformedError, err error) {
	s.Revision = revision
	for key, e := range all {
		rest := strings.TrimPrefix(key, k.prefix)
		switch folder, name, inFolder := strings.Cut(rest, "/"); {
		case rest == "id":
			s.Group, err = decodeGroup(e.value)
			s.Fence = e.mod
		case rest == "primary":
			s.Primary, err = decodePrimary(e.value)
			s.Epoch = uint64(e.mod)
		case inFolder && folder == "insync":
			var m Member
			m, err = decodeInSync(name, e.value)
			s.InSync = append(s.InSync, m)
		case inFolder && folder == "replicas":
			r, bad := decodeReplica(name, e.value)
			if bad != nil {
				skipped = append(skipped, malformed(key, bad))
				continue
			}
			s.Replicas = append(s.Replicas, r)
		}
		if err != nil {
			return State{}, nil, malformed(key, err)
		}
	}
	slices.SortFunc(s.InSync, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Replicas, func(a, b Replica) int { return cmp.Compare(a.Name, b.Name) })
	return s, skipped, nil
}

func malformed(key string, err error) *MalformedError {
	return &MalformedError{Key: key, Reason: err.Error()}
}

// The JSON forms. Fields that are added later are ignored by older readers.
type (
	groupJSON struct {
		ID       string `json:"id"` // hexadecimal: a JSON number holds 53 bits
		Protocol uint32 `json:"protocol"`
		Level    string `json:"level"`
		Version  string `json:"version"`
		// Replaces is Group's, absent if it is empty.
		Replaces string `json:"replaces,omitempty"`
	}
	primaryJSON struct {
		Name        string `json:"name"`
		Incarnation string `json:"incarnation"`
	}
	// replicaJSON is what etcd's naming/endpoints writes, so that its tools and resolvers can read
	// it.
	replicaJSON struct {
		Op       int
		Addr     string
		Metadata metadataJSON
	}
	metadataJSON struct {
		Incarnation string `json:"incarnation"`
		Peer        string `json:"peer"`
		Host        string `json:"host,omitempty"`
	}
)

func encodeGroup(g Group) string {
	return encode(groupJSON{ID: encodeHex(g.ID), Protocol: g.Protocol, Level: g.Level, Version: g.Version,
		Replaces: g.Replaces})
}

func decodeGroup(value []byte) (Group, error) {
	var j groupJSON
	if err := decode(value, &j); err != nil {
		return Group{}, err
	}
	id, err := decodeHex(j.ID)
	if err != nil {
		return Group{}, err
	}
	g := Group{ID: id, Protocol: j.Protocol, Level: j.Level, Version: j.Version, Replaces: j.Replaces}
	return g, g.Validate()
}

func encodePrimary(m Member) string {
	return encode(primaryJSON{Name: m.Name, Incarnation: encodeHex(m.Incarnation)})
}

func decodePrimary(value []byte) (Member, error) {
	var j primaryJSON
	if err := decode(value, &j); err != nil {
		return Member{}, err
	}
	return decodeMember(j.Name, j.Incarnation)
}

func encodeInSync(m Member) string { return encodeHex(m.Incarnation) }

func decodeInSync(name string, value []byte) (Member, error) {
	if err := checkSize(value); err != nil {
		return Member{}, err
	}
	return decodeMember(name, string(value))
}

func encodeReplica(r Replica) string {
	return encode(replicaJSON{Addr: r.Addr,
		Metadata: metadataJSON{Incarnation: encodeHex(r.Incarnation), Peer: r.PeerAddr, Host: r.Host}})
}

func decodeReplica(name string, value []byte) (Replica, error) {
	var j replicaJSON
	if err := decode(value, &j); err != nil {
		return Replica{}, err
	}
	if j.Op != 0 {
		return Replica{}, fmt.Errorf("its Op is %d", j.Op)
	}
	m, err := decodeMember(name, j.Metadata.Incarnation)
	if err != nil {
		return Replica{}, err
	}
	r := Replica{Member: m, Addr: j.Addr, PeerAddr: j.Metadata.Peer, Host: j.Metadata.Host}
	return r, r.Validate()
}

func decodeMember(name, incarnation string) (Member, error) {
	n, err := decodeHex(incarnation)
	if err != nil {
		return Member{}, err
	}
	m := Member{Name: name, Incarnation: n}
	return m, m.Validate()
}

func encodeHex(n uint64) string { return strconv.FormatUint(n, 16) }

func decodeHex(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || encodeHex(n) != s {
		return 0, fmt.Errorf("%.40q is no number in lower-case hexadecimal without leading zeros", s)
	}
	return n, nil
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and an int always marshal
	}
	return string(b)
}

func decode(value []byte, v any) error {
	if err := checkSize(value); err != nil {
		return err
	}
	return json.Unmarshal(value, v)
}

func checkSize(value []byte) error {
	if len(value) > maxValue {
		return errTooLarge
	}
	return nil
}

var errTooLarge = errors.New("has more than " + strconv.Itoa(maxValue) + " bytes")
