/** The few marks that report.md uses, made into elements; every word stays a text node. */

import type { ComponentChildren } from "preact";

const cells = (line: string) => line.replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function inline(text: string): ComponentChildren {
  return text.split(/(`[^`]*`|\*\*[^*]+\*\*)/).map((part) =>
    part.startsWith("`") && part.length > 1 ? <code>{part.slice(1, -1)}</code> : part.startsWith("**") && part.length > 4 ? <strong>{part.slice(2, -2)}</strong> : part,
  );
}

export function Markdown({ text }: { text: string }) {
  const lines = text.split("\n");
  const out: ComponentChildren[] = [];
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i]!;
    const heading = line.match(/^(#{1,4}) (.*)$/);
    if (line.startsWith("```")) {
      const from = ++i;
      while (i < lines.length && !lines[i]!.startsWith("```")) i++;
      out.push(<pre tabIndex={0}>{lines.slice(from, i).join("\n")}</pre>);
    } else if (heading) {
      const Heading = `h${Math.min(6, heading[1]!.length + 1)}` as "h2";
      out.push(<Heading>{inline(heading[2]!)}</Heading>);
    } else if (line.startsWith("|")) {
      const from = i;
      while (i + 1 < lines.length && lines[i + 1]!.startsWith("|")) i++;
      out.push(<Table lines={lines.slice(from, i + 1)} />);
    } else if (/^[-*] /.test(line)) {
      const from = i;
      while (i + 1 < lines.length && /^[-*] /.test(lines[i + 1]!)) i++;
      out.push(<ul>{lines.slice(from, i + 1).map((item) => <li>{inline(item.slice(2))}</li>)}</ul>);
    } else if (line.trim()) out.push(<p>{inline(line)}</p>);
  }
  return <div class="markdown">{out}</div>;
}

function Table({ lines }: { lines: string[] }) {
  const [head = "", , ...body] = lines;
  return (
    <div class="scroll-x">
      <table class="plain">
        <thead><tr>{cells(head).map((cell) => <th>{inline(cell)}</th>)}</tr></thead>
        <tbody>{body.map((line) => <tr>{cells(line).map((cell) => <td>{inline(cell)}</td>)}</tr>)}</tbody>
      </table>
    </div>
  );
}
