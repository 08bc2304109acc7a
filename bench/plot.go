package main

import (
	"errors"
	"image/color"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A chart is lines over one pair of axes.
type chart struct {
	title, x, y string
	logX, logY  bool
	steps       bool // the lines are of distributions
	lines       []line
}

// A line has the name of what it shows.
type line struct {
	name   string
	points plotter.XYs
}

const (
	chartWidth  = 18 * vg.Centimeter
	chartHeight = 11 * vg.Centimeter
)

// write makes folder's plots/name, an SVG.
func (c chart) write(folder, name string) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.BackgroundColor = color.White
	p.Legend.Top, p.Legend.Left = true, true
	if c.logX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	if c.logY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	p.Add(plotter.NewGrid())
	for i, l := range c.lines {
		if err := c.add(p, i, l); err != nil {
			return err
		}
	}
	path := filepath.Join(folder, plotsFolder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	canvas := vgsvg.New(chartWidth, chartHeight)
	p.Draw(draw.New(canvas))
	_, err = canvas.WriteTo(f)
	return errors.Join(err, f.Close())
}

func (c chart) add(p *plot.Plot, i int, l line) error {
	if len(l.points) == 0 { // it would be an error
		return nil
	}
	drawn, points, err := plotter.NewLinePoints(l.points)
	if err != nil {
		return err
	}
	drawn.Color, points.Color = plotutil.Color(i), plotutil.Color(i)
	drawn.Dashes, points.Shape = plotutil.Dashes(i/7), plotutil.Shape(i)
	if c.steps {
		drawn.StepStyle = plotter.PostStep
		p.Add(drawn)
		p.Legend.Add(l.name, drawn)
		return nil
	}
	p.Add(drawn, points)
	p.Legend.Add(l.name, drawn, points)
	return nil
}
