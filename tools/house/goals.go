package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// What goals are about.
const (
	fields  = "fields"  // of each struct
	methods = "methods" // of each struct, as declared
	up      = "up"      // arrows back up in each package
	held    = "held"    // comments that tell a lock in each package
	public  = "public"  // exported names of the public packages, together
)

// goals are what goals.txt says.
type goals struct {
	goal   map[string]int            // by what it is about
	except map[string]map[string]int // the same for one struct, by its name with its package's
	free   []string                  // structs that may have any number of fields
	room   []string                  // packages whose comments may tell the lock
	today  map[[2]string]int         // what there is where a goal isn't met, by package and what it is about
}

// parseGoals reads lines of these forms, and comments behind #:
//
//	goal WHAT NUMBER
//	except STRUCT WHAT NUMBER
//	free STRUCT
//	room PACKAGE
//	today PACKAGE WHAT NUMBER
func parseGoals(text string) (goals, error) {
	g := goals{goal: map[string]int{}, except: map[string]map[string]int{}, today: map[[2]string]int{}}
	var errs []error
	for i, line := range strings.Split(text, "\n") {
		words := wordsOf(line)
		if len(words) == 0 {
			continue
		}
		number, err := strconv.Atoi(words[len(words)-1])
		switch fmt.Sprintf("%s %d %t", words[0], len(words), err == nil) {
		case "goal 3 true":
			g.goal[words[1]] = number
		case "except 4 true":
			if g.except[words[2]] == nil {
				g.except[words[2]] = map[string]int{}
			}
			g.except[words[2]][words[1]] = number
		case "free 2 false":
			g.free = append(g.free, words[1])
		case "room 2 false":
			g.room = append(g.room, words[1])
		case "today 4 true":
			g.today[[2]string{words[1], words[2]}] = number
		default:
			errs = append(errs, fmt.Errorf("line %d isn't understood: %s", i+1, line))
		}
	}
	for _, what := range []string{fields, methods, up, held, public} {
		if _, ok := g.goal[what]; !ok {
			errs = append(errs, fmt.Errorf("there is no goal of %s", what))
		}
	}
	return g, errors.Join(errs...)
}

func wordsOf(line string) []string {
	line, _, _ = strings.Cut(line, "#")
	return strings.Fields(line)
}

// fact is one number that there is a goal for.
type fact struct {
	pkg, what string
	has       string // the sentence's beginning
	number    int
	goal      int
}

// facts are all of them. The one about public has no package.
func (g goals) facts(h house) (facts []fact) {
	names := 0
	for _, p := range h {
		for _, s := range p.structs {
			name := p.name + "." + s.name
			if !slices.Contains(g.free, name) {
				facts = append(facts, fact{p.name, fields, name + " has %d fields", s.fields, g.of(fields, name)})
			}
			facts = append(facts, fact{p.name, methods, name + " has %d methods", s.methods, g.of(methods, name)})
		}
		facts = append(facts, fact{p.name, up, p.name + ": %d arrows run back up", len(p.arrows.up()), g.goal[up]})
		if !slices.Contains(g.room, p.name) {
			facts = append(facts, fact{p.name, held, p.name + ": %d comments tell a lock", len(p.held), g.goal[held]})
		}
		if p.public {
			names += len(p.exported)
		}
	}
	return append(facts, fact{"", public, "the public packages have %d exported names", names, g.goal[public]})
}

// of is the goal for a struct.
func (g goals) of(what, name string) int {
	if n, ok := g.except[what][name]; ok {
		return n
	}
	return g.goal[what]
}

// judge returns what is worse than the goals and today's numbers, and what is better, so that these
// can be tightened.
func (g goals) judge(h house) (missed []error, loose []string) {
	reached := g.reached(h)
	for _, f := range g.facts(h) {
		limit := max(f.goal, g.today[[2]string{f.pkg, f.what}])
		if f.number <= limit {
			continue
		}
		err := fmt.Sprintf(f.has+", at most %d are allowed", f.number, limit)
		if limit > f.goal {
			err += fmt.Sprintf(" (and the goal is %d)", f.goal)
		}
		missed = append(missed, errors.New(err))
	}
	for _, row := range slices.SortedFunc(maps.Keys(g.today), func(a, b [2]string) int {
		return strings.Compare(a[0]+" "+a[1], b[0]+" "+b[1])
	}) {
		switch is, ok := reached[row]; {
		case !ok:
			loose = append(loose, fmt.Sprintf("%s: the goal of %s is met; its row can go", row[0], row[1]))
		case is < g.today[row]:
			loose = append(loose,
				fmt.Sprintf("%s: %s is down to %d, its row says %d", row[0], row[1], is, g.today[row]))
		}
	}
	if is := publicNames(h); is < g.goal[public] {
		loose = append(loose, fmt.Sprintf("the public packages have %d exported names, the goal says %d", is,
			g.goal[public]))
	}
	return missed, loose
}

// keep fails when anything is worse than it may be, or better than the file says: else that could
// be lost again, and nobody would notice.
func (g goals) keep(h house) error {
	errs, loose := g.judge(h)
	for _, l := range loose {
		errs = append(errs, errors.New("better: "+l))
	}
	if len(loose) > 0 {
		errs = append(errs, errors.New("`make house-tighten` writes down what is better; commit that"))
	}
	return errors.Join(errs...)
}

// reached is what today's numbers are where a goal isn't met.
func (g goals) reached(h house) map[[2]string]int {
	reached := map[[2]string]int{}
	for _, f := range g.facts(h) {
		if row := [2]string{f.pkg, f.what}; f.number > f.goal {
			reached[row] = max(reached[row], f.number)
		}
	}
	return reached
}

func publicNames(h house) (n int) {
	for _, p := range h {
		if p.public {
			n += len(p.exported)
		}
	}
	return n
}

// tighten returns the text with today's numbers where these are better. Nothing is ever loosened:
// who must do that edits the file, and says why.
func (g goals) tighten(text string, h house) string {
	reached := g.reached(h)
	var kept []string
	for _, line := range strings.Split(text, "\n") {
		words := wordsOf(line)
		switch {
		case len(words) == 4 && words[0] == "today":
			row := [2]string{words[1], words[2]}
			is, ok := reached[row]
			if !ok {
				continue
			}
			line = withNumber(line, g.today[row], min(is, g.today[row]))
		case len(words) == 3 && words[0] == "goal" && words[1] == public:
			line = withNumber(line, g.goal[public], min(publicNames(h), g.goal[public]))
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "\n")
}

// withNumber replaces the number that ends what a line says before its comment.
func withNumber(line string, from, to int) string {
	says, comment, _ := strings.Cut(line, "#")
	at := strings.LastIndex(says, strconv.Itoa(from))
	says = says[:at] + strconv.Itoa(to) + says[at+len(strconv.Itoa(from)):]
	if comment != "" {
		comment = "#" + comment
	}
	return says + comment
}
