package election

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestValidName(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"a": true, "replica-1.example": true, "répliqué": true, "two words": true, strings.Repeat("x", 128): true,
		"": false, "a/b": false, "/": false, "a?b": false, "a#b": false, "100%": false, "tab\t": false,
		"nul\x00": false, "\xff": false, "soft\u00adhyphen": false,
		strings.Repeat("x", 129): false,
	} {
		err := ValidName(name)
		if (err == nil) != ok {
			t.Errorf("ValidName(%q) = %v, want ok %v", name, err, ok)
		}
		var invalid *InvalidError
		if err != nil && !errors.As(err, &invalid) {
			t.Errorf("ValidName(%q) = %T, want *InvalidError", name, err)
		}
	}
}

func TestStateRoundTrip(t *testing.T) {
	t.Parallel()
	k := keysOf("greeter")
	want := State{
		Revision: 42,
		Group:    Group{ID: math.MaxUint64, Level: "stable", Version: `v1 "quoted"`},
		Primary:  Member{"b", 0xb1},
		Epoch:    17,
		Fence:    3,
		InSync:   []Member{{"a", math.MaxUint64}, {"b", 0xb1}},
		Replicas: []Replica{{Member{"a", 7}, "host:1", "host:2", "machine"}, {Member{"c", 1}, "[::1]:3", "", ""}},
	}
	all := entries{
		k.id():              {value: []byte(encodeGroup(want.Group)), mod: 3},
		k.primary():         {value: []byte(encodePrimary(want.Primary)), mod: 17},
		k.prefix + "future": {value: []byte("\xff")},
	}
	for _, m := range want.InSync {
		all[k.inSync(m.Name)] = entry{value: []byte(encodeInSync(m))}
	}
	for _, r := range want.Replicas {
		all[k.replica(r.Name)] = entry{value: []byte(encodeReplica(r))}
	}
	got, skipped, err := k.state(all, 42)
	if err != nil || len(skipped) > 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("state = %+v, %v, %v\nwant %+v", got, skipped, err, want)
	}
}

// The spelling in the store is a contract with other versions and tools.
func TestSpelling(t *testing.T) {
	t.Parallel()
	for got, want := range map[string]string{
		encodeGroup(Group{ID: 255, Protocol: 1, Level: "direct",
			Version: "v2"}): `{"id":"ff","protocol":1,"level":"direct","version":"v2"}`,
		encodePrimary(Member{"a", 255}): `{"name":"a","incarnation":"ff"}`,
		encodeInSync(Member{"a", 255}):  `ff`,
		encodeReplica(Replica{Member{"a", 255}, "h:1", "h:2",
			""}): `{"Op":0,"Addr":"h:1","Metadata":{"incarnation":"ff","peer":"h:2"}}`,
		keysOf("g").id():          "/understudy/g/id",
		keysOf("g").primary():     "/understudy/g/primary",
		keysOf("g").inSync("a"):   "/understudy/g/insync/a",
		keysOf("g").replica("a"):  "/understudy/g/replicas/a",
		Member{"a", 255}.String(): "a#ff",
		Member{}.String():         "nobody",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestMalformedEntries(t *testing.T) {
	t.Parallel()
	k := keysOf("g")
	long := strings.Repeat("x", 2*maxValue)
	for _, tt := range []struct {
		key, value string
		skipped    bool // rather than an error
	}{
		{key: k.id(), value: ""},
		{key: k.id(), value: "{"},
		{key: k.id(), value: `{"id":"0"}`},
		{key: k.id(), value: `{"id":"ff"} trailing`},
		{key: k.id(), value: `{"id":"ff","level":"` + long + `"}`},
		{key: k.primary(), value: "null"},
		{key: k.primary(), value: `{"name":"a/b","incarnation":"1"}`},
		{key: k.primary(), value: `{"name":"a","incarnation":"01"}`},
		{key: k.primary(), value: `{"name":"a","incarnation":"1"` + long + `}`},
		{key: k.inSync("a"), value: ""},
		{key: k.inSync("a"), value: "0"},
		{key: k.inSync("a"), value: "FF"},
		{key: k.inSync("a"), value: "-1"},
		{key: k.inSync("a"), value: "10000000000000000"},
		{key: k.inSync("a"), value: long},
		{key: k.inSync(""), value: "1"},
		{key: k.inSync("a/b"), value: "1"},
		{key: k.replica("a"), value: long, skipped: true},
		{key: k.replica("a"), value: "[]", skipped: true},
		{key: k.replica("a"), value: `{"Op":1,"Addr":"h:1","Metadata":{"incarnation":"1"}}`, skipped: true},
		{key: k.replica("a"), value: `{"Addr":"","Metadata":{"incarnation":"1"}}`, skipped: true},
		{key: k.replica("a"), value: `{"Addr":"h:1","Metadata":"1"}`, skipped: true},
		{key: k.replica("a/b"), value: encodeReplica(Replica{Member{"a", 1}, "h:1", "", ""}), skipped: true},
		{key: k.replica("\x00"), value: encodeReplica(Replica{Member{"a", 1}, "h:1", "", ""}), skipped: true},
	} {
		s, skipped, err := k.state(entries{tt.key: newEntry([]byte(tt.value), 1, 0)}, 1)
		var bad *MalformedError
		if tt.skipped {
			if err != nil || len(skipped) != 1 || skipped[0].Key != tt.key || len(s.Replicas) != 0 {
				t.Errorf("%s = %.40q: state %+v, skipped %v, error %v, want it skipped", tt.key, tt.value, s, skipped,
					err)
			}
		} else if !errors.As(err, &bad) || bad.Key != tt.key {
			t.Errorf("%s = %.40q: %+v, %v, want an error that names the key", tt.key, tt.value, s, err)
		}
		if bad != nil && len(bad.Error()) > 1000 {
			t.Errorf("%s = %.40q: the error has %d bytes", tt.key, tt.value, len(bad.Error()))
		}
	}
}

// What decodes is valid, and encodes to something that decodes to the same.
func FuzzDecode(f *testing.F) {
	f.Add("replicas/a", []byte(encodeReplica(Replica{Member{"a", 255}, "h:1", "h:2", ""})))
	f.Add("insync/a", []byte("ff"))
	f.Add("primary", []byte(`{"name":"a","incarnation":"ff"}`))
	f.Add("id", []byte(`{"id":"ff","protocol":1,"level":"direct","version":"v2"}`))
	f.Add("id", []byte(`{"id":"ff","id":"fe","LEVEL":"direct"}`))
	f.Fuzz(func(t *testing.T, rest string, value []byte) {
		k := keysOf("g")
		s, _, err := k.state(entries{k.prefix + rest: newEntry(value, 1, 0)}, 1)
		if err != nil {
			return
		}
		again := entries{}
		put := func(key, value string) { again[key] = newEntry([]byte(value), 1, 0) }
		if !s.Group.IsZero() {
			put(k.id(), encodeGroup(s.Group))
		}
		if !s.Primary.IsZero() {
			put(k.primary(), encodePrimary(s.Primary))
		}
		for _, m := range s.InSync {
			put(k.inSync(m.Name), encodeInSync(m))
		}
		for _, r := range s.Replicas {
			put(k.replica(r.Name), encodeReplica(r))
		}
		got, skipped, err := k.state(again, 1)
		if err != nil || len(skipped) > 0 || !reflect.DeepEqual(got, s) {
			t.Errorf("%q = %q decodes to %+v, which encodes and decodes to %+v, %v, %v", rest, value, s, got, skipped,
				err)
		}
	})
}
