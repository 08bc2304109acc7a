package transport

import (
	"fmt"
	"net"
	"strings"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// scheme is the scheme of targets: replicated://host:port[,host:port]/group.
const scheme = route.Scheme

// target says where a group is found.
type target struct {
	// endpoints are those of etcd, host:port; at least one, unless WithStore is given.
	endpoints []string
	// group is a name that election.ValidName accepts.
	group string
}

// parseTarget reads the target of a ClientConn.
func parseTarget(text string) (target, error) {
	rest, ok := strings.CutPrefix(text, scheme+"://")
	if !ok {
		return target{}, fmt.Errorf("transport: the target %q isn't of the form %s://host:port[,host:port]/group",
			text, scheme)
	}
	hosts, group, _ := strings.Cut(rest, "/")
	t := target{group: group}
	if err := election.ValidName(group); err != nil {
		return target{}, fmt.Errorf("transport: the target %q: the group: %w", text, err)
	}
	if hosts == "" {
		return t, nil
	}
	t.endpoints = strings.Split(hosts, ",")
	for _, e := range t.endpoints {
		if _, port, err := net.SplitHostPort(e); err != nil || port == "" {
			return target{}, fmt.Errorf("transport: the target %q: %q isn't host:port", text, e)
		}
	}
	return t, nil
}
