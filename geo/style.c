/* QGIS styles (QML, QGIS 3). The layer: changed windows filled and labelled with their caption, the others outlined, what was left
 * out hatched. The map: the colours of `caption --heatmap`, clear where nothing changed. */
#include "geo/layer.h"

#define SYMBOL(name, fill, outline, width, style)                                                                        \
  "<symbol type=\"fill\" name=\"" name                                                                                   \
  "\" alpha=\"1\" clip_to_extent=\"1\" force_rhr=\"0\">"                                                                 \
  "<layer class=\"SimpleFill\" enabled=\"1\" locked=\"0\" pass=\"0\"><Option type=\"Map\">"                              \
  "<Option type=\"QString\" name=\"color\" value=\"" fill "\"/><Option type=\"QString\" name=\"style\" value=\"" style   \
  "\"/><Option type=\"QString\" name=\"outline_color\" value=\"" outline                                                 \
  "\"/><Option type=\"QString\" name=\"outline_style\" value=\"solid\"/><Option type=\"QString\" name=\"outline_width\"" \
  " value=\"" width "\"/><Option type=\"QString\" name=\"outline_width_unit\" value=\"MM\"/></Option></layer></symbol>"

#define RULE(name, label, filter) "<rule key=\"{" name "}\" symbol=\"" name "\" label=\"" label "\" filter=\"" filter "\"/>"

const char btc_style_layer_qml[] =
    "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    "<qgis version=\"3.22.16\" styleCategories=\"Symbology|Labeling|MapTips\" labelsEnabled=\"1\">"
    "<renderer-v2 type=\"RuleRenderer\" symbollevels=\"0\" enableorderby=\"0\" forceraster=\"0\"><rules key=\"{root}\">" RULE(
        "0", "changed", "&quot;changed&quot; AND &quot;status&quot; = 'ok'") RULE("1", "no change", "NOT &quot;changed&quot;")
        RULE("2", "left out", "&quot;status&quot; = 'skipped' AND &quot;reason&quot; != 'unchanged'") RULE("3", "failed",
                                                                                           "&quot;status&quot; = 'failed'") "</rules>"
    "<symbols>" SYMBOL("0", "232,94,46,60", "200,58,78,255", "0.5", "solid") SYMBOL("1", "0,0,0,0", "120,120,120,110", "0.15", "no")
        SYMBOL("2", "150,150,150,90", "150,150,150,90", "0.1", "b_diagonal")
            SYMBOL("3", "156,38,106,120", "156,38,106,255", "0.4", "cross") "</symbols></renderer-v2>"
    "<labeling type=\"rule-based\"><rules key=\"{labels}\"><rule key=\"{label0}\" filter=\"&quot;changed&quot; AND "
    "&quot;status&quot; = 'ok'\" scalemaxdenom=\"25000\"><settings><text-style fieldName=\"caption\" fontSize=\"8\" "
    "textColor=\"20,20,20,255\" fontFamily=\"Sans\" fontSizeUnit=\"Point\"><text-buffer bufferDraw=\"1\" bufferSize=\"0.8\" "
    "bufferColor=\"255,255,255,220\"/></text-style><text-format wrapChar=\"\" autoWrapLength=\"28\"/><placement placement=\"1\"/>"
    "</settings></rule></rules></labeling>"
    "<mapTip>&lt;b&gt;[% &quot;caption&quot; %]&lt;/b&gt;&lt;br&gt;score [% round(&quot;score&quot;, 3) %]&lt;br&gt;[% &quot;before_date&quot; %] to "
    "[% &quot;after_date&quot; %]</mapTip><layerGeometryType>2</layerGeometryType></qgis>\n";

#define ITEM(value, colour, alpha) "<item value=\"" value "\" label=\"" value "\" color=\"" colour "\" alpha=\"" alpha "\"/>"

const char btc_style_heat_qml[] =
    "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    "<qgis version=\"3.22.16\" styleCategories=\"Symbology\"><pipe><provider><resampling enabled=\"true\" "
    "zoomedInResamplingMethod=\"bilinear\" zoomedOutResamplingMethod=\"bilinear\" maxOversampling=\"2\"/></provider>"
    "<rasterrenderer type=\"singlebandpseudocolor\" band=\"1\" opacity=\"1\" alphaBand=\"-1\" classificationMin=\"0\" "
    "classificationMax=\"0.5\"><rastershader><colorrampshader colorRampType=\"INTERPOLATED\" classificationMode=\"1\" clip=\"0\" "
    "minimumValue=\"0\" maximumValue=\"0.5\">" ITEM("0", "#160e36", "0") ITEM("0.0625", "#3e1268", "12")
        ITEM("0.125", "#6c1a76", "45") ITEM("0.1875", "#9c266a", "105") ITEM("0.25", "#c83a4e", "165")
            ITEM("0.3125", "#e85e2e", "195") ITEM("0.375", "#f88e1e", "215") ITEM("0.4375", "#fbc240", "225")
                ITEM("0.5", "#fcf6a8", "235") "</colorrampshader></rastershader></rasterrenderer></pipe></qgis>\n";
