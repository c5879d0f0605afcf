/** One small box for every explanation on hover or focus: any element with data-hint. Text only. */

import { useEffect, useRef } from "preact/hooks";

export function Hints() {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const hint = box.current!;
    let over: Element | null = null;
    const hide = () => {
      over = null;
      hint.hidden = true;
    };
    const showFor = (event: Event) => {
      const target = (event.target as Element).closest?.("[data-hint]") ?? null;
      // typing in a field needs no box over what is below it
      if (event.type === "focusin" && /^(INPUT|TEXTAREA|SELECT)$/.test((event.target as Element).tagName)) return;
      if (target === over) return;
      over = target;
      const text = target?.getAttribute("data-hint");
      if (!target || !text) return hide();
      hint.textContent = text;
      hint.hidden = false;
      const at = target.getBoundingClientRect();
      const { offsetWidth: width, offsetHeight: height } = hint;
      const left = Math.max(6, Math.min(innerWidth - width - 6, at.left + at.width / 2 - width / 2));
      const below = at.bottom + height + 12 < innerHeight;
      hint.style.transform = `translate(${Math.round(left)}px, ${Math.round(below ? at.bottom + 6 : at.top - height - 6)}px)`;
    };
    document.addEventListener("pointerover", showFor);
    document.addEventListener("focusin", showFor);
    document.addEventListener("focusout", hide);
    document.addEventListener("pointerdown", hide);
    document.addEventListener("scroll", hide, true);
    return () => {
      document.removeEventListener("pointerover", showFor);
      document.removeEventListener("focusin", showFor);
      document.removeEventListener("focusout", hide);
      document.removeEventListener("pointerdown", hide);
      document.removeEventListener("scroll", hide, true);
    };
  }, []);
  return <div ref={box} class="hint" role="tooltip" hidden />;
}
