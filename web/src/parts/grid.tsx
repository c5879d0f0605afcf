/** A table of any length: only the rows on the screen exist. Rows are recycled, so scrolling makes no new elements. */

import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

// Browsers clip elements taller than some 17 million pixels; beyond this a scroll of one pixel moves more than one.
const TALLEST = 15_000_000;
const SPARE = 6;

interface GridProps {
  label: string;
  total: number;
  rowHeight: number;
  cursor: number;
  columns: number;
  head: ComponentChildren;
  row: (index: number, slot: number, top: number) => ComponentChildren;
  onWindow: (first: number, last: number) => void;
  /** Scrolls back to the top when it changes. */
  of: string;
}

export function Grid({ label, total, rowHeight, cursor, columns, head, row, onWindow, of }: GridProps) {
  const frame = useRef<HTMLDivElement>(null);
  const header = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 800 });
  const waiting = useRef(0);

  const real = total * rowHeight;
  const tall = Math.min(real, TALLEST);
  const headHeight = header.current?.offsetHeight ?? rowHeight;
  const room = Math.max(1, tall - view.height);
  // where the rows' own coordinate system starts, and how far it is drawn from the scroll position
  const offset = real > tall ? (view.top / room) * (real - tall) : 0;
  const first = Math.max(0, Math.floor((view.top + offset) / rowHeight) - SPARE);
  const shown = Math.ceil(view.height / rowHeight) + 2 * SPARE;
  const last = Math.min(total, first + shown);

  const measure = () => {
    waiting.current = 0;
    const element = frame.current;
    if (element) setView({ top: element.scrollTop, height: element.clientHeight });
  };
  useLayoutEffect(() => {
    const element = frame.current!;
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    const later = () => {
      waiting.current ||= requestAnimationFrame(measure);
    };
    element.addEventListener("scroll", later, { passive: true });
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", later);
      cancelAnimationFrame(waiting.current);
    };
  }, []);
  useEffect(() => onWindow(first, last), [first, last, of]);
  useEffect(() => void frame.current?.scrollTo(frame.current.scrollLeft, 0), [of]);
  useEffect(() => {
    const element = frame.current!;
    if (cursor < 0 || real > tall) return;
    const top = cursor * rowHeight;
    const bottom = top + rowHeight + headHeight;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (bottom > element.scrollTop + element.clientHeight) element.scrollTop = bottom - element.clientHeight;
  }, [cursor]);

  const rows = [];
  for (let i = first; i < last; i++) rows.push(row(i, i % shown, i * rowHeight - offset));
  return (
    <div
      ref={frame}
      class="grid"
      role="grid"
      aria-label={label}
      aria-rowcount={total + 1}
      aria-colcount={columns}
      tabIndex={0}
    >
      <div ref={header} role="row" class="grid-head" aria-rowindex={1}>{head}</div>
      <div role="rowgroup" class="grid-body" style={{ height: `${tall}px` }}>{rows}</div>
    </div>
  );
}
