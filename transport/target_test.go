package transport

import (
	"slices"
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]target{
		"replicated://127.0.0.1:2379/greeter":          {endpoints: []string{"127.0.0.1:2379"}, group: "greeter"},
		"replicated://a:1,b:2/greeter":                 {endpoints: []string{"a:1", "b:2"}, group: "greeter"},
		"replicated://[::1]:1,[::2]:2/g":               {endpoints: []string{"[::1]:1", "[::2]:2"}, group: "g"},
		"replicated:///greeter":                        {group: "greeter"},
		"replicated://127.0.0.1:2379/":                 {},
		"replicated://127.0.0.1:2379":                  {},
		"replicated://127.0.0.1/greeter":               {},
		"replicated://127.0.0.1:/greeter":              {},
		"replicated://a:1,/greeter":                    {},
		"replicated://a:1/greeter/more":                {},
		"etcd://127.0.0.1:2379/greeter":                {},
		"127.0.0.1:2379":                               {},
		"dns:///replicated://127.0.0.1:2379/greeter":   {},
		"replicated://a:1/" + strings.Repeat("x", 200): {},
		"": {},
	} {
		got, err := parseTarget(text)
		if (err == nil) != (want.group != "") || got.group != want.group ||
			!slices.Equal(got.endpoints, want.endpoints) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// FuzzTarget: a target that is taken names a valid group.
func FuzzTarget(f *testing.F) {
	f.Add("replicated://127.0.0.1:2379,[::1]:1/greeter")
	f.Fuzz(func(t *testing.T, s string) {
		if target, err := parseTarget(s); err == nil && target.group == "" {
			t.Errorf("%+v", target)
		}
	})
}
