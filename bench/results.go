package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	resultsFile   = "RESULTS.md"
	plotsFolder   = "plots"
	resultsHeader = "# Results\n\nWritten by `make bench-peers`, `make bench-scale` and `make bench-failover`, each " +
		"its own section; what is measured, and how, is in [README.md](README.md).\n"
)

// sections are in the order of resultsFile.
var sections = []string{"peers", "scale", "failover"}

// writeSection replaces one section of the results in folder, and leaves the others as they are.
func writeSection(folder, name, body string) error {
	path := filepath.Join(folder, resultsFile)
	was, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b strings.Builder
	b.WriteString(resultsHeader)
	for _, s := range sections {
		begin, end := marks(s)
		text := ""
		if _, after, ok := strings.Cut(string(was), begin); ok {
			text, _, _ = strings.Cut(after, end)
		}
		if s == name {
			text = "\n" + strings.TrimSpace(body) + "\n"
		}
		if text != "" {
			fmt.Fprintf(&b, "\n%s%s%s\n", begin, text, end)
		}
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

// marks stand around a section; Markdown doesn't show them.
func marks(section string) (begin, end string) {
	return "<!-- begin " + section + " -->", "<!-- end " + section + " -->"
}

// markdown writes a table: its first row is the heading, and all columns but the first are of
// numbers.
func markdown(b *strings.Builder, rows [][]string) {
	for i, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(b, "| ---%s |\n", strings.Repeat(" | --:", len(row)-1))
		}
	}
	b.WriteString("\n")
}

// image shows a plot.
func image(b *strings.Builder, text, name string) {
	fmt.Fprintf(b, "![%s](%s/%s)\n\n", text, plotsFolder, name)
}
