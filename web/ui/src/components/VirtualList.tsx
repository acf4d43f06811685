import { useWindowVirtualizer } from "@tanstack/react-virtual";
import { memo, type ReactNode, useCallback, useLayoutEffect, useMemo, useRef, useState } from "react";

/** A list of any length that scrolls with the page: only what is in view is there. Rows may have any height. */
export function VirtualList<T>({
  items,
  estimate,
  itemKey,
  children,
}: {
  items: readonly T[];
  estimate: number;
  /** A function of its own, not made anew each time. */
  itemKey: (item: T, i: number) => string | number;
  children: (item: T, i: number) => ReactNode;
}) {
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  // The virtualizer asks for all keys again whenever a row turns out to have another height.
  const keys = useMemo(() => items.map(itemKey), [items, itemKey]);
  const v = useWindowVirtualizer({
    count: items.length,
    estimateSize: () => estimate,
    overscan: 8,
    scrollMargin: top,
    getItemKey: useCallback((i: number) => keys[i]!, [keys]),
  });
  useLayoutEffect(() => {
    // What is above may have grown; while somebody scrolls, looking would make the browser lay everything out twice.
    if (v.isScrolling) return;
    const at = box.current ? box.current.getBoundingClientRect().top + window.scrollY : 0;
    setTop((old) => (Math.abs(old - at) > 1 ? at : old));
  });
  return (
    <div ref={box} role="list" style={{ position: "relative", height: v.getTotalSize() }}>
      {v.getVirtualItems().map((row) => (
        <div
          key={row.key}
          role="listitem"
          aria-setsize={items.length}
          aria-posinset={row.index + 1}
          data-index={row.index}
          ref={v.measureElement}
          style={{ position: "absolute", top: 0, left: 0, right: 0, transform: `translateY(${row.start - top}px)` }}
        >
          <Content item={items[row.index]!} i={row.index} render={children as (item: unknown, i: number) => ReactNode} />
        </div>
      ))}
    </div>
  );
}

/** What is in view stays as it is while others come into view. */
const Content = memo(({ item, i, render }: { item: unknown; i: number; render: (item: unknown, i: number) => ReactNode }) =>
  render(item, i),
);
