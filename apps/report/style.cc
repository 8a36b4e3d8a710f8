#include "apps/report/style.h"

#include <string_view>

#include "apps/report/kinds.h"

namespace refrain::report {
namespace {

constexpr std::string_view kLight =
    "--paper:#fdfcfa;--ink:#1c1e21;--quiet:#5b6067;--rule:#d8d5ce;--grid:#e9e6df;--raised:#f5f3ee;--mark:#b3401a;"
    "--fill:#29527a;--track:#a9c3db;--s0:#1c1e21;--s1:#2f6ca8;--s2:#b3401a;--s3:#4f7d3a;--s4:#7c4d9e;--s5:#8a6a12;";
constexpr std::string_view kDark =
    "--paper:#15171a;--ink:#e4e2dd;--quiet:#9ea4ab;--rule:#383d43;--grid:#262a2f;--raised:#1d2024;--mark:#f08a5c;"
    "--fill:#7ba6d0;--track:#35506b;--s0:#e4e2dd;--s1:#7db2e8;--s2:#f08a5c;--s3:#8fc177;--s4:#c39ae0;--s5:#d9b44a;";

constexpr std::string_view kRules = R"css(
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 "Inter","Helvetica Neue","Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif;
  font-variant-numeric:tabular-nums;overflow-wrap:break-word}
main{max-width:1008px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:26px;line-height:1.2;font-weight:650;letter-spacing:-.012em;margin:0 0 6px}
h2{font-size:20px;line-height:1.25;font-weight:650;letter-spacing:-.006em;margin:0}
h3{font-size:14px;font-weight:650;margin:22px 0 6px}
p{margin:0 0 12px}
.about{color:var(--quiet);font-size:13.5px;margin:0 0 4px;max-width:78ch}
nav{margin:20px 0 0;font-size:14.5px}
nav ol{list-style:none;margin:0;padding:0;columns:2;column-gap:32px}
nav li{break-inside:avoid;padding:3px 0}
nav li span{color:var(--quiet)}
a{color:inherit;text-decoration-color:var(--rule);text-underline-offset:3px}
a:hover{text-decoration-color:currentColor}
:focus-visible{outline:2px solid var(--s1);outline-offset:2px}
section{border-top:1px solid var(--ink);margin-top:44px;padding-top:14px}
.finding{font-size:18px;line-height:1.5;max-width:66ch;margin:14px 0 22px}
.finding data,.finding b{white-space:nowrap;font-weight:650}
.note,.none{color:var(--quiet);font-size:13.5px;max-width:78ch;margin:6px 0 22px}
.warning{border-left:3px solid var(--mark);padding-left:12px;font-weight:650}
figure{margin:26px 0 8px}
figcaption{font-weight:650;font-size:14px;margin:0 0 10px}
figure svg{display:block;width:100%;height:auto;overflow:visible}
.mid,.narrow{display:none}
.defs{position:absolute;width:0;height:0}

text{font-size:12.5px;fill:var(--ink)}
.tick,.axis,.quiet{fill:var(--quiet)}
.small{font-size:11.5px}
.strong{font-weight:650}
.halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--grid);stroke-width:1}
.base{stroke:var(--quiet);stroke-width:1}
.seam{stroke:var(--paper);stroke-width:1}
.area{stroke:var(--paper);stroke-width:.3}
.leader{stroke:var(--quiet);stroke-width:.8;fill:none}
.reference{stroke:var(--ink);stroke-width:1;stroke-dasharray:5 4;opacity:.75}
.mark,.limit{stroke:var(--mark);stroke-width:1.5}
.mark{stroke-dasharray:2 3}
.peak{stroke:var(--ink);stroke-width:1.2}
.resident{fill:none;stroke:var(--ink);stroke-width:1.1;opacity:.8}
.peak-dot{fill:var(--ink);stroke:var(--paper);stroke-width:1.5}
.boundary{stroke:var(--ink);stroke-width:.8;opacity:.35}
.phase.p-forward{fill:var(--quiet);opacity:.35}
.phase.p-backward{fill:var(--quiet);opacity:.7}
.phase.p-recompute{fill:var(--k-recomputed)}
.phase.p-optimizer{fill:var(--ink)}
.shade{fill:var(--ink);opacity:.045;pointer-events:none}
.shade.p-recompute{opacity:.07}
.cursor{stroke:var(--mark);stroke-width:1;pointer-events:none}
.through{pointer-events:none}
.t-recomputed{fill:url(#hatch)}
.t-workspace{fill:url(#dots)}
.estimated{opacity:.62}
.front{fill:none;stroke:var(--s1);stroke-width:1.3;stroke-dasharray:4 3}
.point{stroke:var(--s1);stroke-width:2}
.point.on{fill:var(--s1)}
.point.off{fill:var(--paper)}
.bar{fill:var(--track)}
.bar.plain{fill:var(--quiet);opacity:.55}
.bar.chosen{fill:var(--fill)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.thin{stroke-width:1.3}
.line.dashed{stroke-dasharray:5 4}
.dot{stroke:var(--paper);stroke-width:1.2}
.swatch{vertical-align:-1px;margin-right:7px;flex:none}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;margin:4px 0 8px;padding:0;font-size:13.5px}
.kind{white-space:nowrap}
.readout{min-height:1.5em;color:var(--quiet);font-size:13.5px;margin:0}
.readout b{color:var(--ink);font-weight:650}

table{border-collapse:collapse;width:100%;font-size:14px;line-height:1.35;margin:22px 0}
caption{text-align:left;font-weight:650;padding-bottom:8px}
th,td{padding:6px 0 6px 16px;vertical-align:top;border-bottom:1px solid var(--grid);text-align:right;font-weight:400}
thead th{color:var(--quiet);font-size:12.5px;vertical-align:bottom;border-bottom-color:var(--rule)}
th.t,td.t{text-align:left}
th:first-child{padding-left:0}
tbody th{overflow-wrap:anywhere;min-width:8em}
data,td small{white-space:nowrap}
tr.plain th,tr.plain td{border-bottom-color:var(--rule)}
tr.sum th,tr.sum td,tr.chosen th,tr.chosen td{font-weight:650;border-bottom:0}
tr.chosen{background:var(--raised)}
tr.estimated{opacity:1}
tr.estimated th,tr.estimated td{color:var(--quiet)}
td .h{display:none}
td small{display:block;color:var(--quiet);font-size:11.5px;font-weight:400}
.inline{display:block;width:110px;height:9px;margin-top:5px}
.fill{fill:var(--fill)}
.track{fill:var(--track)}
.pair{display:grid;grid-template-columns:minmax(0,300px) minmax(0,1fr);gap:0 44px;align-items:start}
.pair table{margin-top:10px}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono","DejaVu Sans Mono",monospace;font-size:.9em}
td code,th code{overflow-wrap:anywhere;font-size:12.5px}
.sizes{white-space:nowrap}
pre{background:var(--raised);border:1px solid var(--grid);padding:12px 14px;margin:0 0 14px;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5}
.reasons{margin:0 0 14px;padding-left:20px;max-width:74ch}
.reasons li{padding:2px 0}
details{margin:14px 0}
summary{cursor:pointer;font-size:14px;color:var(--quiet)}
footer{border-top:1px solid var(--rule);margin-top:48px;padding-top:12px}

@media (max-width:1007px){.wide{display:none}.mid{display:block}.cards{font-size:13px}.cards th:not(:first-child),.cards td{padding-left:9px}.inline{width:64px}.pair{display:block}}
@media (max-width:719px){
  main{padding:24px 16px 48px}
  h1{font-size:22px}h2{font-size:18px}
  nav ol{columns:1}
  .finding{font-size:16.5px}
  .mid{display:none}.narrow{display:block;max-width:460px}
  .cards,.cards tbody,.cards tr,.cards td,.cards th,.cards caption{display:block}
  .cards thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
  .cards tbody tr{border-top:1px solid var(--rule);padding:8px 0;display:grid;grid-template-columns:1fr 1fr;gap:2px 20px}
  .cards tbody th{grid-column:1/-1;border:0;padding:0 0 2px;font-weight:650}
  .cards td,.cards td.t{border:0;padding:1px 0;display:flex;justify-content:space-between;gap:10px;text-align:right}
  .cards td.t,.cards td.t+td.n:last-child{grid-column:1/-1}
  .cards td .h{display:inline;color:var(--quiet);text-align:left}
  .cards td:has(.inline){grid-column:1/-1;display:block}
  .inline{width:100%}
}
@media print{
  body{font-size:10.5pt}
  main{max-width:none;padding:0}
  nav,.readout{display:none}
  figure,tr,.finding{break-inside:avoid}
  h2,h3,caption,figcaption{break-after:avoid}
  details::details-content{content-visibility:visible;height:auto}
  *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
)css";

constexpr std::string_view kScript = R"js(
addEventListener("beforeprint",()=>document.querySelectorAll("details").forEach(d=>d.open=true));
for(const data of document.querySelectorAll("script[data-levels]")){
  const L=JSON.parse(data.textContent),figure=document.getElementById(data.dataset.levels);
  const out=document.createElement("p");out.className="readout";out.textContent="Point at the chart to read the level at a time.";figure.append(out);
  const show=n=>(n/L.bytes).toLocaleString("en",{minimumFractionDigits:L.decimals,maximumFractionDigits:L.decimals});
  for(const svg of figure.querySelectorAll("svg[data-plot]")){
    const [left,right,top,bottom]=svg.dataset.plot.split(" ").map(Number);
    const cursor=document.createElementNS(svg.namespaceURI,"line");
    cursor.setAttribute("class","cursor");cursor.setAttribute("y1",top);cursor.setAttribute("y2",bottom);cursor.style.display="none";svg.append(cursor);
    svg.addEventListener("pointermove",e=>{
      const box=svg.getBoundingClientRect(),x=(e.clientX-box.left)*svg.viewBox.baseVal.width/box.width;
      if(x<left||x>right||!L.t.length)return;
      const t=L.begin+(x-left)/(right-left)*(L.end-L.begin);
      let a=0,b=L.t.length;while(b-a>1){const m=(a+b)>>1;L.t[m]<=t?a=m:b=m}
      cursor.setAttribute("x1",x);cursor.setAttribute("x2",x);cursor.style.display="";
      const level=document.createElement("b");level.textContent=(L.t[a]/1000).toFixed(2)+" ms: "+show(L.total[a])+" "+L.unit;
      out.replaceChildren(level,L.kinds.filter(k=>k[1][a]).reverse().map(k=>" · "+k[0]+" "+show(k[1][a])).join(""));
    });
    svg.addEventListener("pointerleave",()=>cursor.style.display="none");
  }
}
)js";

}  // namespace

std::string style_sheet() {
  std::string css = ":root{color-scheme:light dark;" + std::string(kLight) + kind_colours(false) +
                    "}\n@media screen and (prefers-color-scheme:dark){:root{" + std::string(kDark) +
                    kind_colours(true) + "}}";
  css += kRules;
  for (const Kind& kind : kinds()) css += ".k-" + std::string(kind.id) + "{fill:var(--k-" + kind.id + ")}";
  for (const char* s : {"0", "1", "2", "3", "4", "5"}) {
    css += "\n.line.s" + std::string(s) + ",.dots.s" + s + "{stroke:var(--s" + s + ")}.dot.s" + s + ",.label.s" + s +
           "{fill:var(--s" + s + ")}";
  }
  css += "\n.dot.dots{fill:var(--paper);stroke-width:1.4}.line.dots{stroke:none}";
  return css + "\n";
}

std::string script() { return std::string(kScript); }

std::string patterns() {
  return "<svg class=\"defs\" aria-hidden=\"true\"><defs>"
         "<pattern id=\"hatch\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">"
         "<rect width=\"1.2\" height=\"5\" fill=\"var(--paper)\" opacity=\".75\"/></pattern>"
         "<pattern id=\"dots\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\">"
         "<circle cx=\"2\" cy=\"2\" r=\".8\" fill=\"var(--paper)\"/></pattern></defs></svg>\n";
}

}  // namespace refrain::report
