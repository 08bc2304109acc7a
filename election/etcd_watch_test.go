package election

import (
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestEventsFollowWhatWasListed: an event of another store, in which etcd's client has resumed a
// watch, isn't mixed with what was listed in the first one.
func TestEventsFollowWhatWasListed(t *testing.T) {
	t.Parallel()
	listed := entries{"/g/primary": newEntry([]byte("a"), 6, 0)}
	for _, test := range []struct {
		name  string
		key   string
		prev  int64 // 0: there was none
		value string
		valid bool
	}{
		{"a change of what was listed", "/g/primary", 6, "a", true},
		{"a change of another value, of the same revision", "/g/primary", 6, "d", false},
		{"a new key", "/g/insync/b", 0, "a", true},
		{"a change of an earlier value", "/g/primary", 3, "a", false},
		{"a change of a later value", "/g/primary", 8, "a", false},
		{"a key that was listed is made", "/g/primary", 0, "a", false},
		{"a change of a key that wasn't listed", "/g/insync/b", 5, "a", false},
	} {
		event := &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(test.key), ModRevision: 9}}
		if test.prev > 0 {
			event.PrevKv = &mvccpb.KeyValue{Key: []byte(test.key), Value: []byte(test.value), ModRevision: test.prev}
		}
		if listed.precede(event) != test.valid {
			t.Errorf("%s: %v, want %v", test.name, !test.valid, test.valid)
		}
	}
}
