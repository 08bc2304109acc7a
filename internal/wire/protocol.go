package wire

import pb "github.com/understudy-rpc/understudy/proto/understudy/v1"

// Protocol is the number of the protocol: of what stands in proto/, in runs, seals and snapshots,
// and in the store. A change that another version would take for something else counts it up. It
// is in the group's record in the store and in the first message of each stream, both ways: those
// who speak another one refuse each other by name, before anything else is read.
const Protocol = 1

// RefusalIn returns what a header says in the trailer of a stream, of which values is what stands
// under HeaderKey. Without a header that can be read, nobody of ours has refused anything.
func RefusalIn(values []string) pb.Refusal {
	var h Header
	if len(values) == 0 || h.FromMetadata(values) != nil {
		return pb.Refusal_REFUSAL_UNSPECIFIED
	}
	return h.Refusal
}
